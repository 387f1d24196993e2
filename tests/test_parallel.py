"""Several processes: every photo once, and the same files as one process makes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CONCEPTS,
    ROOT,
    TINY,
    assert_ran,
    assert_refused,
    files_of,
    run_folder,
    run_script,
    script_environment,
    write_yollava,
)

from pekit import cli, parallel
from pekit.cli import detection, extraction
from pekit.hub import pick_device
from pekit.parallel import Shard, current_shard, gather, joined, launch, shard_device, usable_cores
from pekit.records import UserError
from pekit.sample.train import __main__ as training


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_hold_every_item_once(world: int) -> None:
    items = list(range(17))
    shares = [Shard(rank, world).share(items) for rank in range(world)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_place_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_shard() == Shard(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert current_shard() == Shard(5, 8, 1)


@pytest.mark.parametrize(
    ("device", "ids", "rank", "expected"),
    [
        ("auto", (4, 6), 1, "cuda:6"),
        ("cuda", (4, 6), 0, "cuda:4"),
        ("cuda", (3,), 0, "cuda:3"),
        ("cpu", (0, 1), 1, "cpu"),
        ("cuda:2", (), 0, "cuda:2"),
    ],
)
def test_each_process_has_its_device(device: str, ids: tuple, rank: int, expected: str) -> None:
    assert shard_device(device, ids, Shard(rank, max(1, len(ids)), rank)) == expected


def test_workers_follow_the_cores_that_are_allotted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(40, 46)), raising=False)
    assert cli.default_workers() == 3
    assert training.build_parser().parse_args(["masks", "--out", "x"]).workers == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cli.default_workers() == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_cores() == 10


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_that_are_not_there_are_told_before_processes_are_started(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *args, **options: pytest.fail("started"))
    with pytest.raises(UserError, match="--device_ids 0,1: this machine has 1 CUDA GPU: name those"):
        launch(lambda argv: 0, [], device, (0, 1))


def test_on_a_second_machine_gpus_are_counted_from_its_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two machines with four processes each, on machines with four GPUs."""
    third_of_the_second = Shard(rank=6, world=8, local_rank=2)
    assert shard_device("auto", (0, 1, 3, 5, 7), third_of_the_second) == "cuda:3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert shard_device("auto", (), third_of_the_second) == "cuda:2"


def test_several_processes_without_a_gpu_find_their_device_as_one_does() -> None:
    assert shard_device("auto", (), Shard(rank=1, world=2, local_rank=1)) == "auto"


def test_a_process_knows_its_place_and_has_its_part_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for cores in (8, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        with pytest.raises(SystemExit) as left:
            parallel._rank(1, lambda argv: 7 if argv == ["--x"] else 0, ["--x"], 3, 29500)
        assert left.value.code == 7
    assert threads == [2, 1]
    assert current_shard() == Shard(1, 3, 1) and os.environ["LOCAL_WORLD_SIZE"] == "3"
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "29500")


def test_processes_that_do_not_end_are_told_more_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, pid: int, ends_at: int | None) -> None:
            self.pid, self.ends_at, self.waits, self.told = pid, ends_at, [], [None]

        def is_alive(self) -> bool:
            return self.ends_at not in self.told

        def join(self, seconds: float) -> None:
            self.waits.append(seconds)

    processes = [Process(0, None), Process(1, signal.SIGINT), Process(2, signal.SIGTERM)]
    monkeypatch.setattr(os, "kill", lambda pid, number: processes[pid].told.append(number))
    parallel._stop(processes)
    assert [process.told[1:] for process in processes] == [[], [signal.SIGINT], [signal.SIGINT, signal.SIGTERM]]
    assert [process.waits for process in processes] == [[parallel.PATIENCE] * 3] * 3


def test_a_process_that_ends_early_waits_for_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives up after half an hour; a share of a large data set may take days longer than another."""
    begun: list[tuple] = []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *a, **o: begun.append((a, o)))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: begun.append(()))
    with joined(Shard(1, 2, 1)):
        [((backend,), options)] = begun
    assert backend == "gloo" and options["timeout"] >= timedelta(days=7)
    assert len(begun) == 2


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_the_processs_gpu_is_its_current_one(name: str, current: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, by what torch is asked for; it takes a device without a number for a mistake."""
    chosen: list[int] = []
    ones = torch.ones(1)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: ones)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    assert str(pick_device(name)) == name
    assert chosen == current


def test_a_gpu_that_torch_has_no_code_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives memory, and fails where something is computed."""

    class Old(torch.Tensor):
        def add(self, *_: object, **__: object) -> torch.Tensor:
            raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nMore.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for maker in ("empty", "ones"):
        monkeypatch.setattr(torch, maker, lambda *_, **__: torch.zeros(1).as_subclass(Old))
    with pytest.raises(UserError, match=r"--device cuda .*no kernel image .* try --device cpu"):
        pick_device("auto")


def test_one_process_gathers_itself() -> None:
    assert gather({"a": 1}, Shard()) == [{"a": 1}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_yollava(tmp_path / "data", CONCEPTS[:2], train=2, test=2)
    (tmp_path / "data/YoLLaVA/test/lamp/1.png").write_bytes(b"no image")  # the first process's, of the two
    return tmp_path


def options(folder: Path, models: Path) -> tuple:
    return "--dataset", "yollava", "--data_folder", folder / "data", "--models", models, *TINY, "--device", "cpu"


def torchrun(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(ROOT / script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env=script_environment(),
    )


def test_two_processes_equal_one(data: Path, models: Path, call: Callable) -> None:
    """Extraction by torchrun, detection by --device_ids."""
    run = options(data, models)
    assert_ran(call(extraction.main, *run, "--features_folder", data / "one"))
    shared = torchrun("extraction.py", *run, "--features_folder", data / "two")
    assert_ran(shared)
    assert shared.stdout.count("4 views made") == 1
    one, two = files_of(data / "one"), files_of(data / "two")
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith(".pt"):
            a, b = (torch.load(data / side / name, weights_only=True) for side in ("one", "two"))
            np.testing.assert_allclose(a["descriptor"].numpy(), b["descriptor"].numpy(), atol=1e-6)
        else:
            assert one[name] == two[name]

    detect = (*run, "--features_folder", data / "one", "--detect_thresh", 0.5)
    assert_ran(call(detection.main, *detect, "--save_folder", data / "r1"), 1)
    result = run_script("detection.py", *detect, "--save_folder", data / "r2", "--device_ids", "0,1")
    assert_ran(result, 1)
    assert result.stdout.count("1 of 4 photos") == 1 and len(re.findall("results in", result.stdout)) == 1
    first, second = run_folder(data / "r1"), run_folder(data / "r2")
    assert files_of(first).keys() == files_of(second).keys()
    assert json.loads((first / "summary.json").read_text()) == json.loads((second / "summary.json").read_text())
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    pairs = zip(*((f / "predictions.jsonl").read_text().splitlines() for f in (first, second)), strict=True)
    for a, b in (map(json.loads, pair) for pair in pairs):
        assert a["photo"] == b["photo"]
        assert a["similarities"] == pytest.approx(b["similarities"], abs=1e-6)
        assert a["detections"] == b["detections"]


def test_results_are_whole_where_a_photo_is_unreadable(data: Path, models: Path, call: Callable) -> None:
    """Writing many thresholds takes the first process longer than the others need to end."""
    run = (*options(data, models), "--features_folder", data / "views")
    assert_ran(call(extraction.main, *run))
    detect = (*run, "--save_folder", data / "results", "--detect_thresh=-0.9:0.9:0.01", "--device_ids", "0,1")
    result = run_script("detection.py", *detect)
    assert_ran(result, 1)
    assert result.stdout.count("1 of 4 photos could not be read") == 1
    assert len(list(run_folder(data / "results").glob("threshold-*/metrics.json"))) == 181
    assert (run_folder(data / "results") / "summary.json").is_file()


@pytest.mark.parametrize("start", ["launch", "torchrun"])
def test_a_mistake_that_the_first_finds_is_one_sentence(
    data: Path, models: Path, tmp_path: Path, call: Callable, start: str
) -> None:
    run = options(data, models)
    detect = (*run, "--features_folder", tmp_path / "none", "--save_folder", tmp_path / "r")
    assert_ran(call(extraction.main, *run, "--features_folder", tmp_path / "views"))
    extract = (*run, "--features_folder", tmp_path / "views", "--dino_img_size", 280)
    for script, command in (("detection.py", detect), ("extraction.py", extract)):
        if start == "launch":
            result = run_script(script, *command, "--device_ids", "0,1")
            assert result.returncode == 2
        else:
            result = torchrun(script, *command)
            assert result.returncode != 0
        own = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(own) == 1 and ("run extraction.py" in own[0] or "--overwrite" in own[0])
        if start == "launch":  # torchrun shows one of its own
            assert "Traceback" not in result.stderr
        assert "gloo" not in result.stderr


def test_the_others_find_what_the_first_has_written_and_all_must_find_the_same(tmp_path: Path) -> None:
    script = tmp_path / "writes.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pekit import parallel\n"
        "from pekit.records import UserError\n"
        "def first(shard, file):\n"
        "    if shard.rank == 0:\n"
        "        time.sleep(1)\n"
        "        file.write_text('whole')\n"
        "    return file.read_text()\n"
        "def work(argv):\n"
        "    shard, file = parallel.current_shard(), Path(argv[0])\n"
        "    with parallel.joined(shard):\n"
        "        found = parallel.first(lambda: first(shard, file), shard)\n"
        "        parallel.agree(found, 'the file', shard)\n"
        "        try:\n"
        "            parallel.agree(shard.rank == 1, 'the rank', shard)\n"
        "        except UserError as error:\n"
        "            found += f', {error}'\n"
        "    return 0 if found.startswith('whole, the rank changed while') else 3\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit(parallel.launch(work, sys.argv[1:], 'cpu', (0, 1, 2)))\n"
    )
    env = script_environment() | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert result.returncode == 0, result.stderr


def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal\n"
        "from pekit import parallel\n"
        "def work(argv):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit(parallel.launch(work, [], 'cpu', (0, 1)))\n"
    )
    env = script_environment() | {"PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=env)
    assert died.returncode == 1
    assert "was killed (SIGKILL)" in died.stderr and "run the same command again" in died.stderr
    assert "Traceback" not in died.stderr


def kill_one_of_two(command: list[str], begun: Callable[[], bool]) -> int:
    """Start a script in two processes, kill the second without warning once work has begun; the exit code of all."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=script_environment())
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    try:
        deadline = time.monotonic() + 120
        while not begun():
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        ranks = [int(pid) for pid in children.read_text().split()]
        os.kill(ranks[-1], signal.SIGKILL)
        return started.wait(timeout=120)
    finally:
        started.kill()
        started.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_dead_process_loses_only_its_unfinished_photos(tmp_path: Path, models: Path, call: Callable) -> None:
    write_yollava(tmp_path / "data", CONCEPTS[:2], train=20, test=20)
    run = (*options(tmp_path, models), "--num_workers", 0, "--n_training_views", 20)
    assert_ran(call(extraction.main, *run, "--features_folder", tmp_path / "one"))
    shared = (*run, "--features_folder", tmp_path / "two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def views() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.pt")}

    extract = [*command, str(ROOT / "extraction.py"), *map(str, shared)]
    assert kill_one_of_two(extract, lambda: len(views()) > 4) != 0
    kept = views()
    assert 4 < len(kept) < 40
    assert_ran(torchrun("extraction.py", *shared))
    after = views()
    assert len(after) == 40 and kept.items() <= after.items()  # none was made again
    for path in after:
        a, b = (torch.load(p, weights_only=True) for p in (path, tmp_path / "one" / path.relative_to(tmp_path / "two")))
        np.testing.assert_allclose(a["descriptor"].numpy(), b["descriptor"].numpy(), atol=1e-6)

    detect = (*run, "--features_folder", tmp_path / "one", "--detect_thresh", 0.5)
    assert_ran(call(detection.main, *detect, "--save_folder", tmp_path / "r1"))
    again = (*detect, "--save_folder", tmp_path / "r2")

    def lines() -> list[str]:
        return [line for part in (tmp_path / "r2").rglob("part-*.jsonl") for line in part.read_text().splitlines()]

    assert kill_one_of_two([*command, str(ROOT / "detection.py"), *map(str, again)], lambda: len(lines()) > 4) != 0
    assert 4 < len(lines()) < 40
    found = torchrun("detection.py", *again)
    assert_ran(found)
    first, second = run_folder(tmp_path / "r1"), run_folder(tmp_path / "r2")  # the second run went on in its folder
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    pairs = zip(*((f / "predictions.jsonl").read_text().splitlines() for f in (first, second)), strict=True)
    assert all(json.loads(a)["detections"] == json.loads(b)["detections"] for a, b in pairs)


def test_a_place_that_torchrun_did_not_give(
    data: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    run = (*options(data, models), "--features_folder", data / "views")
    assert_refused(call(extraction.main, *run), "WORLD_SIZE=2")


WAITING = """
import os, time
from pekit import parallel
def work(argv):
    os.write(1, b"begun\\n")  # at once: what two print may be mixed
    time.sleep(300)
if __name__ == "__main__":
    parallel.PATIENCE = 0.5
    parallel.launch(work, [], 'cpu', (0, 1))
"""


def test_ctrl_c_to_the_one_that_started_them_ends_all(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "waiting.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=script_environment(),
        start_new_session=True,
    )
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)  # the pipe is closed once the last of them has ended
    assert process.returncode != 0
