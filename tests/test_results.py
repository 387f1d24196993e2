"""Result names and files: the published .npy names, run folders that never collide, JSON that any reader takes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import IO

import numpy as np
import pytest

from pekit import files, results
from pekit.files import write_atomically
from pekit.records import UserError


@pytest.mark.parametrize(
    ("setting", "metric", "threshold", "variation", "expected"),
    [
        (("yollava", False, None), "precision", 0.75, "normal", "yollava-single-precisions-0.75-normal.npy"),
        (("myvlm", False, None), "neg_recall", 0.5, "augment", "myvlm-single-neg_recalls-0.5-augment.npy"),
        (("this-is-my", True, None), "recall", 0.6, "normal", "this-is-my-multi-recalls-0.6-normal.npy"),
        (
            ("this-is-my", False, "Positive"),
            "neg_precision",
            0.75,
            "normal",
            "this-is-my-single-positive-neg_precisions-0.75-normal.npy",
        ),
        (
            ("this-is-my", False, "Negative (Hard)"),
            "recall",
            0.75,
            "augment",
            "this-is-my-single-negative_hard-recalls-0.75-augment.npy",
        ),
        (
            ("this-is-my", False, "Negative (Other)"),
            "precision",
            0.75,
            "normal",
            "this-is-my-single-negative_other-precisions-0.75-normal.npy",
        ),
    ],
)
def test_published_names(setting: tuple, metric: str, threshold: float, variation: str, expected: str) -> None:
    assert (
        results.npy_file(Path("r"), results.setting_name(*setting), metric, threshold, variation)
        == Path("r") / expected
    )


def test_arrays_keep_their_values_and_nan(tmp_path: Path) -> None:
    values = np.array([0.25, np.nan, 1.0])
    results.save_npy(tmp_path / "a" / "x.npy", values)
    stored = np.load(tmp_path / "a" / "x.npy", allow_pickle=False)
    np.testing.assert_array_equal(stored, values)
    assert stored.dtype == np.float64
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.npy"]  # no partial file stays


def test_threads_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    def slowly(own: int) -> Iterator[str]:
        yield f"{own}"
        both.wait()  # both are in the middle of it
        yield f"{own}"

    both = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda own: write_atomically(tmp_path / "x.json", slowly(own)), (1, 2)))
    assert (tmp_path / "x.json").read_text() in ("11", "22")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_run_folders_never_collide(tmp_path: Path) -> None:
    folders = [results.new_run_folder(tmp_path / "runs", "-x") for _ in range(20)]
    assert len(set(folders)) == 20
    assert all(folder.is_dir() and folder.name.endswith("-x") for folder in folders)


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    held = results.claim(tmp_path)
    assert held and results.claim(tmp_path) is None
    held.close()
    assert results.claim(tmp_path)


def test_a_lock_that_its_holder_removes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, times = fcntl.flock, []

    def ends_in_between(lock: IO, operation: int) -> None:  # opened already, locked only now
        if not times:
            (tmp_path / ".lock").unlink()
        times.append(operation)
        whole(lock, operation)

    monkeypatch.setattr(fcntl, "flock", ends_in_between)
    held = results.claim(tmp_path)
    assert held and len(times) == 2
    assert results.claim(tmp_path) is None  # else another process would hold a file of the same name


def test_a_process_that_is_forked_meanwhile_holds_no_folder(tmp_path: Path) -> None:
    held, forking = results.claim(tmp_path), get_context("fork")
    started = forking.Event()
    worker = forking.Process(target=lambda: (started.set(), time.sleep(60)))
    worker.start()
    try:
        assert started.wait(30) and results.claim(tmp_path) is None
        held.close()  # as when the process that claimed it is killed
        assert worker.is_alive() and results.claim(tmp_path)
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize(
    ("number", "goes_on"),
    [(errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)],
)
def test_a_file_system_without_locks_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, goes_on: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if goes_on:
        assert results.claim(tmp_path)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(tmp_path) in caplog.text and os.strerror(number) in caplog.text
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            results.claim(tmp_path)


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    value = {"a": np.float32(0.5), "b": np.array([[1, 2]]), "c": np.nan, "d": (np.int64(3), np.bool_(True)), "e": "é"}
    results.write_json(tmp_path / "x.json", value)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    stored = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert stored == {"a": 0.5, "b": [[1, 2]], "c": None, "d": [3, True], "e": "é"}
    assert list(stored) == list("abcde")
    for text in ((tmp_path / "x.json").read_text(encoding="utf-8"), results.json_line(value)):
        assert "\u00e9" in text  # for people to read


@pytest.mark.parametrize("rest", [b'{"n": 3, "unfin', b'{"n": "caf\xc3', b"{", b'"\xe2\x82'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, rest: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"n": 1}\n{"n": "caf\xc3\xa9"}\n' + rest)
    assert list(results.read_jsonl(file)) == [{"n": 1}, {"n": "caf\u00e9"}]


@pytest.mark.parametrize("content", [b'{"n": 1\n{"n": 2}\n', b'{"n": "caf\xc3\n{"n": 2}'])
def test_damage_inside_is_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"line 1 of .*x\.jsonl is damaged"):
        list(results.read_jsonl(tmp_path / "x.jsonl"))


def test_records_stay_on_disk_and_the_latest_of_a_photo_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "part-0.jsonl", tmp_path / "part-1.jsonl"
    rows = [{"photo": name, "n": n} for n, name in enumerate(("a", "caf\u00e9/1", "b", "last"))]
    first.write_text("".join(map(results.json_line, rows)) + '{"photo": "c", "n"', encoding="utf-8")
    second.write_text(results.json_line({"photo": "b", "n": 7}), encoding="utf-8")
    records = results.StoredRecords([first, second])
    assert [records[name]["n"] for name in ("b", "caf\u00e9/1", "a", "caf\u00e9/1", "last")] == [7, 1, 0, 1, 3]
    with pytest.raises(KeyError):
        records["c"]
    records.close()
    with pytest.raises(ValueError, match="closed"):
        records["a"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_lines_that_come_to_an_end_midway_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    def values() -> Iterator[dict]:
        yield {"n": 1}
        raise error

    (tmp_path / "x.jsonl").write_text("before")
    with pytest.raises(type(error)):
        results.write_jsonl(tmp_path / "x.jsonl", values())
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]
    assert (tmp_path / "x.jsonl").read_text() == "before"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left.*x\.json"), files.replacing(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_that_names_a_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, files.replacing(tmp_path / "x.json"):
        (tmp_path / "other.json").read_text()
    assert caught.value.filename == str(tmp_path / "other.json")


def test_one_process_at_a_time_is_alone_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "views/gsam"
    for _ in range(2):  # made where it is missing, taken where it is there
        with files.alone_in(folder):
            other = os.open(folder, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again
        os.close(other)


def test_folders_that_have_no_locks_are_taken_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.alone_in(tmp_path):
        (tmp_path / "x").touch()
    assert (tmp_path / "x").exists()


def test_a_name_of_the_longest_kind_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("\u5b57" * 85)  # 255 bytes
    files.write_atomically(path, "x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_names_that_fit_stay_and_longer_ones_stay_apart() -> None:
    assert files.fitting("n" * 240) == "n" * 240
    first, second = (files.fitting("\u5b57" * 90 + end) for end in "ab")
    assert first != second and first.startswith("\u5b57" * 40) and len(first.encode()) < 240


def test_a_photo_that_is_gone_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.digest_if_readable(tmp_path / "x") == "ba7816bf8f01cfea"  # of FIPS 180's example
    assert files.digest_if_readable(tmp_path / "y") == ""


def test_a_new_runs_folder_goes_where_its_config_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = results.new_run_folder(tmp_path)
    monkeypatch.setattr(results, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        results.write_config(folder, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is no folder of a run of vqa.py"),
        ("{", "is no folder of a run of vqa.py"),
        ("[]", "is no folder of a run of vqa.py"),
        ('{"settings": {}, "argv": []}', "config.json lacks questions, working_folder: it is not that of a run"),
    ],
)
def test_a_folder_of_another_kind_is_no_run_of_vqa(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        results.read_config(tmp_path)
    assert str(tmp_path) in str(caught.value) and words in str(caught.value)


def test_the_config_of_a_run_of_vqa_is_read_as_it_is(tmp_path: Path) -> None:
    config = {"argv": ["--task", "vqa"], "working_folder": "/home/bo", "settings": {}, "questions": {}, "more": 1}
    results.write_config(tmp_path, config)
    assert results.read_config(tmp_path) == config
