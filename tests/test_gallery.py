"""Galleries from one file for all views, and matching in chunks, against the views' own files and plain loops."""

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pekit import consolidated, gallery, retrieval
from pekit.consolidated import CONSOLIDATED
from pekit.names import concept_of_folder
from pekit.records import Concept, Gallery, UserError, View
from pekit.views import MANIFEST, save_view, view_file

WIDTH = 16


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[Concept]]:
    """Three concepts with 3, 5 and 12 photos, one augmentation each; the first view of the second has no patch."""
    rng = np.random.default_rng(0)
    names = ["red-mug", "old_lamp", "kite 10"]
    for concept, photos in zip(names, (3, 5, 12), strict=True):
        for photo in range(photos):
            for augmentation in (0, 1):
                empty = concept == "old_lamp" and photo == 0 and augmentation == 0
                patches = rng.standard_normal((0 if empty else 4, WIDTH)).astype(np.float32)
                descriptor = np.zeros(WIDTH, np.float32) if empty else patches.mean(0)
                view = View(concept, f"train/{concept}/v{photo}.png", augmentation, patches, descriptor)
                save_view(view_file(tmp_path, concept, f"v{photo}", augmentation), view)
    (tmp_path / MANIFEST).write_text("{}")  # that it is there tells them from the released code's
    return tmp_path, [concept_of_folder("yollava", name) for name in names]


def consolidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "LARGE", 0)


@pytest.mark.parametrize("large", [False, True])
def test_hidden_files_are_no_views(stored, monkeypatch, large) -> None:
    folder, concepts = stored
    if large:
        consolidate(monkeypatch)
    expected = gallery.load_gallery(folder, concepts, "normal", 20, seed=3)
    for name in ("._v0_0.pt", "._v9_0.pt", ".pt"):  # what macOS leaves on disks of others, and others leave
        (folder / "red-mug" / name).write_bytes(b"\0\5\x16\7")
    found = gallery.load_gallery(folder, concepts, "normal", 20, seed=3)
    assert found.files == expected.files and len(found.files) == 3 + 5 + 12
    assert np.array_equal(found.descriptors, expected.descriptors)


@pytest.mark.parametrize("variation", ["normal", "augment"])
@pytest.mark.parametrize("n_views", [2, 4, 20])
def test_one_file_holds_what_the_views_hold(stored, monkeypatch, variation, n_views) -> None:
    folder, concepts = stored
    single = gallery.load_gallery(folder, concepts, variation, n_views, seed=3)
    assert not (folder / CONSOLIDATED).exists()
    consolidate(monkeypatch)
    whole = gallery.load_gallery(folder, concepts, variation, n_views, seed=3)
    assert whole.files == single.files
    assert gallery.photo_stems(whole) == gallery.photo_stems(single)
    assert np.array_equal(whole.valid, single.valid)
    assert whole.descriptors.dtype == np.float16
    assert np.array_equal(whole.descriptors, single.descriptors.astype(np.float16))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_a_lone_view_1_is_the_untouched_photo_of_the_released_code(stored, monkeypatch, large, ours) -> None:
    """Of v0 there are views 0 and 1, of v1 view 1 alone, of v2 views 1 and 2, neither of which is untouched."""
    folder, concepts = stored
    if large:
        consolidate(monkeypatch)
    if not ours:
        (folder / MANIFEST).unlink()
    view_file(folder, "red-mug", "v1", 0).unlink()
    view_file(folder, "red-mug", "v2", 0).rename(view_file(folder, "red-mug", "v2", 2))
    found = gallery.load_gallery(folder, concepts, "normal", 20, seed=3)
    mug = [name for name in found.files if "red-mug" in name]
    assert mug == ["red-mug/v0_0.pt", *([] if ours else ["red-mug/v1_1.pt"])]
    assert len(found.files) == len(mug) + 5 + 12
    everything = gallery.load_gallery(folder, concepts[:1], "augment", 20, seed=3)
    assert [name[-7:-3] for name in everything.files] == ["v0_0", "v0_1", "v1_1", "v2_1", "v2_2"]


@pytest.mark.parametrize("large", [False, True])
def test_to_views_of_the_released_code_nothing_is_said_to_be_added(stored, monkeypatch, caplog, large) -> None:
    folder, concepts = stored
    (folder / MANIFEST).unlink()
    if large:
        consolidate(monkeypatch)
    view_file(folder, "red-mug", "v1", 1).unlink()
    gallery.load_gallery(folder, concepts, "augment", 20, seed=1)
    assert "without manifest.json beside them, extraction.py adds none" in caplog.text
    for photo in (0, 2):
        view_file(folder, "red-mug", f"v{photo}", 1).unlink()
    with pytest.raises(UserError, match=r"run extraction\.py --variation augment into another --features_folder"):
        gallery.load_gallery(folder, concepts[:1], "augment", 5, seed=1)


@pytest.mark.parametrize("large", [False, True])
def test_augmentations_that_are_not_there_are_told(stored, monkeypatch, caplog, large) -> None:
    folder, concepts = stored
    if large:
        consolidate(monkeypatch)
    for photo in range(3):
        view_file(folder, "red-mug", f"v{photo}", 1).unlink()
    gallery.load_gallery(folder, concepts, "augment", 5, seed=1)
    assert "3 of 13 photos have fewer than 2 views, such as red-mug/v0: run the same extraction.py" in caplog.text
    caplog.clear()
    gallery.load_gallery(folder, concepts, "normal", 5, seed=1)
    assert "views, such as" not in caplog.text.replace("have views of fewer", "")
    with pytest.raises(UserError, match=r"no augmented views: run extraction\.py --variation augment first"):
        gallery.load_gallery(folder, concepts[:1], "augment", 5, seed=1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_view_of_numbers_that_are_not_finite_is_refused(stored, monkeypatch, large, number) -> None:
    folder, concepts = stored
    if large:
        consolidate(monkeypatch)
    patches = np.ones((4, WIDTH), np.float32)
    patches[1, 3] = number
    save_view(view_file(folder, "kite 10", "v2", 0), View("kite 10", "x.png", 0, patches, patches.mean(0)))
    with pytest.raises(UserError, match=r"v2_0\.pt holds numbers that are not finite"):
        gallery.load_gallery(folder, concepts, "normal", 20, seed=1)


def test_concepts_in_another_order_and_number(stored, monkeypatch) -> None:
    folder, concepts = stored
    some = [concepts[2], concepts[0]]
    single = gallery.load_gallery(folder, some, "normal", 2, seed=1)
    consolidate(monkeypatch)
    whole = gallery.load_gallery(folder, some, "normal", 2, seed=1)
    assert whole.keys == ("kite 10", "red-mug")
    assert np.array_equal(whole.descriptors, single.descriptors.astype(np.float16))


@pytest.mark.parametrize("augmented", [False, True])
def test_one_file_where_all_photos_are_in_use(stored, monkeypatch, augmented) -> None:
    """In another order than the file's; augmentations that are not asked for stay out."""
    folder, concepts = stored
    if not augmented:
        for file in folder.glob("*/*_1.pt"):
            file.unlink()
    some = [concepts[1], concepts[0]]
    single = gallery.load_gallery(folder, some, "normal", 20, seed=3)
    consolidate(monkeypatch)
    whole = gallery.load_gallery(folder, some, "normal", 20, seed=3)
    assert whole.files == single.files and len(whole.files) == 5 + 3
    assert np.array_equal(whole.valid, single.valid)
    assert np.array_equal(whole.descriptors, single.descriptors.astype(np.float16))


def test_one_augmentation_alone_stays_out(stored, monkeypatch) -> None:
    folder, concepts = stored
    for file in folder.glob("*/*_1.pt"):
        if file.parent.name != "kite 10" or file.stem != "v0_1":
            file.unlink()
    consolidate(monkeypatch)
    for concept, photos in zip(concepts, (3, 5, 12), strict=True):
        found = gallery.load_gallery(folder, [concept], "normal", 20, seed=3)
        assert [name.rpartition("_")[2] for name in found.files] == ["0.pt"] * photos


def test_views_are_listed_where_they_are_not_too_many(stored, monkeypatch) -> None:
    folder, concepts = stored
    known = gallery.load_gallery(folder, concepts, "normal", 20, seed=0)
    for most, told in ((20, list(known.files)), (19, "20 views")):
        monkeypatch.setattr(gallery, "LARGE", most)
        assert gallery.identity(known)["views"] == told


def test_a_concepts_digest_is_of_its_own_views_alone(stored) -> None:
    """Whatever the number of views of others, which pads its own."""
    folder, concepts = stored
    alone, together = (
        gallery.digests(gallery.load_gallery(folder, some, "normal", 20, seed=0)) for some in (concepts[:1], concepts)
    )
    assert alone == {"red-mug": together["red-mug"]} and len(set(together.values())) == 3
    view_file(folder, "red-mug", "v2", 0).unlink()
    changed = gallery.digests(gallery.load_gallery(folder, concepts, "normal", 20, seed=0))
    assert [key for key, digest in changed.items() if digest != together[key]] == ["red-mug"]


def test_a_concepts_digest_is_the_same_in_a_gallery_that_grew_large(stored, monkeypatch) -> None:
    folder, concepts = stored
    small = gallery.digests(gallery.load_gallery(folder, concepts, "normal", 20, seed=0))
    consolidate(monkeypatch)
    large = gallery.load_gallery(folder, concepts, "normal", 20, seed=0)
    assert large.descriptors.dtype == np.float16 and gallery.digests(large) == small


def test_the_file_is_written_anew_when_a_view_changes(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    before = gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    dated = (folder / CONSOLIDATED).stat().st_mtime_ns
    gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    assert (folder / CONSOLIDATED).stat().st_mtime_ns == dated  # nothing changed, nothing written
    ones = np.ones((2, WIDTH), np.float32)
    save_view(view_file(folder, "red-mug", "v1", 0), View("red-mug", "v1.png", 0, ones, ones[0]))
    after = gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    assert np.array_equal(after.descriptors[0, 1], np.ones(WIDTH))
    assert not np.array_equal(before.descriptors[0, 1], np.ones(WIDTH))
    (folder / "red-mug" / "v2_0.pt").unlink()
    assert sum("red-mug" in name for name in gallery.load_gallery(folder, concepts, "normal", 3, seed=0).files) == 2


def test_only_concepts_that_changed_are_read_again(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    gallery.load_gallery(folder, concepts, "augment", 9, seed=0)
    read: list[Path] = []
    load = consolidated.load_descriptor
    monkeypatch.setattr(consolidated, "load_descriptor", lambda path: (read.append(path), load(path))[1])
    ones = np.ones((2, WIDTH), np.float32)
    save_view(view_file(folder, "red-mug", "v9", 0), View("red-mug", "v9.png", 0, ones, ones[0]))
    save_view(view_file(folder, "a new one", "v0", 0), View("a new one", "v0.png", 0, ones, ones[0]))
    shutil.rmtree(folder / concepts[1].key)
    kept = [concepts[0], concepts[2], concept_of_folder("yollava", "a new one")]
    whole = gallery.load_gallery(folder, kept, "augment", 9, seed=0)
    assert {path.parent.name for path in read} == {"red-mug", "a new one"}
    single, _ = gallery._from_files(folder, kept, "augment", 9, 0)
    assert whole.files == single.files
    assert np.array_equal(whole.descriptors, single.descriptors.astype(np.float16))


def test_a_folder_that_is_older_than_it_was_has_changed_too(stored, monkeypatch) -> None:
    """As one that is copied back with its dates."""
    folder, concepts = stored
    consolidate(monkeypatch)
    gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    ones = np.ones((2, WIDTH), np.float32)
    save_view(view_file(folder, "red-mug", "v1", 0), View("red-mug", "v1.png", 0, ones, ones[0]))
    os.utime(folder / "red-mug", (1e9, 1e9))
    after = gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    assert np.array_equal(after.descriptors[0, 1], np.ones(WIDTH))


def test_a_damaged_file_is_replaced(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    expected = gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors.copy()
    file = folder / CONSOLIDATED
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors, expected)


@pytest.mark.parametrize("changed", ["names", "starts", "augmentations", "rows", "valid"])
@pytest.mark.parametrize("value", [None, torch.zeros(1), torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8)])
def test_a_file_of_another_layout_is_replaced(stored, monkeypatch, changed, value) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    expected = gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors.copy()
    file = folder / CONSOLIDATED
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        metadata = content.metadata()
    del tensors[changed]
    tensors |= {"more": torch.zeros(1)} if value is None else {changed: value}
    save_file(tensors, file, metadata)
    assert np.array_equal(gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors, expected)


def test_a_folder_in_its_place_is_no_hindrance(stored, monkeypatch, caplog) -> None:
    folder, concepts = stored
    expected = gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors.astype(np.float16)
    consolidate(monkeypatch)
    (folder / CONSOLIDATED / "x").mkdir(parents=True)
    assert np.array_equal(gallery.load_gallery(folder, concepts, "normal", 3, seed=0).descriptors, expected)
    assert f"{folder / CONSOLIDATED} cannot be written" in caplog.text


def test_others_may_read_it_as_they_may_the_views(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    before = os.umask(0o027)
    try:
        gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    finally:
        os.umask(before)
    assert (folder / CONSOLIDATED).stat().st_mode & 0o777 == 0o640


def test_what_killed_processes_left_goes_after_a_day(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    old, new = folder / ".tmpAb1xYz", folder / ".tmpAb1xYy"
    for file in (old, new, mine := folder / f".{CONSOLIDATED}.1-2.partial"):
        file.write_bytes(b"x")
    for file in (old, mine):
        os.utime(file, (0, time.time() - 25 * 3600))
    (folder / ".tmpAb1xYx").symlink_to(folder / "none")  # gone, as where another process has removed it meanwhile
    gallery.load_gallery(folder, concepts, "normal", 3, seed=0)
    assert not old.exists() and not mine.exists() and new.exists()


def test_what_a_run_matches_to_is_told_by_its_own_concepts(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)

    def source() -> str:
        return gallery.identity(gallery.load_gallery(folder, concepts[:2], "normal", 3, seed=0))["views_digest"]

    before, ones = source(), np.ones((2, WIDTH), np.float32)
    for concept in ("a new one", concepts[2].key, "gsam/red-mug"):  # before, after and beside them
        save_view(view_file(folder, concept, "v0", 0), View(concept, "v0.png", 0, ones, ones[0]))
        assert source() == before
    (folder / "gsam" / CONSOLIDATED).write_bytes(b"")
    dated = (folder / CONSOLIDATED).stat().st_mtime_ns
    assert source() == before and (folder / CONSOLIDATED).stat().st_mtime_ns == dated
    save_view(view_file(folder, "red-mug", "v0", 0), View("red-mug", "v0.png", 0, ones, ones[0]))
    assert source() != before


@pytest.mark.parametrize(
    ("writes", "error"),
    [
        ("replacing", OSError(errno.EROFS, os.strerror(errno.EROFS))),
        ("save_file", SafetensorError("I/O error: Read-only file system")),
    ],
)
def test_a_folder_that_takes_no_file_is_read_all_the_same(stored, monkeypatch, caplog, writes, error) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(consolidated, writes, refuse)
        gathered = gallery.load_gallery(folder, concepts, "augment", 5, seed=0)
    assert "Read-only file system" in caplog.text and not (folder / CONSOLIDATED).exists()
    read = gallery.load_gallery(folder, concepts, "augment", 5, seed=0)
    assert (folder / CONSOLIDATED).exists()
    assert np.array_equal(gathered.descriptors, read.descriptors) and np.array_equal(gathered.valid, read.valid)
    assert gathered.files == read.files and gathered.source == read.source


def test_a_concept_without_views_is_named(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    with pytest.raises(UserError, match=r"no views of 'hat'.*extraction\.py"):
        gallery.load_gallery(folder, [*concepts, concept_of_folder("yollava", "hat")], "normal", 3, seed=0)


def test_few_views_are_told_once(stored, caplog) -> None:
    folder, concepts = stored
    with caplog.at_level(logging.WARNING):
        gallery.load_gallery(folder, concepts, "normal", 5, seed=0)
    assert [r.message for r in caplog.records if "fewer" in r.message] == [
        "1 concept with views of fewer than 5 photos, such as red-mug"
    ]


@pytest.mark.parametrize("large", [False, True])
def test_few_photos_are_told_however_many_augmentations_they_have(stored, monkeypatch, caplog, large) -> None:
    folder, concepts = stored
    if large:
        consolidate(monkeypatch)
    gallery.load_gallery(folder, concepts, "augment", 5, seed=0)  # of the mug there are 6 views of 3 photos
    assert "1 concept with views of fewer than 5 photos, such as red-mug" in caplog.text


def random_gallery(rng: np.random.Generator, concepts: int, views: int, dtype: type) -> Gallery:
    descriptors = rng.standard_normal((concepts, views, WIDTH)).astype(dtype)
    valid = rng.random((concepts, views)) < 0.8
    valid[:, 0] = True
    return Gallery(tuple(Concept(str(i), "", "") for i in range(concepts)), descriptors, valid)


def plain_similarities(proposals: np.ndarray, known: Gallery) -> np.ndarray:
    result = np.full((len(proposals), len(known.concepts)), -np.inf)
    for m, proposal in enumerate(proposals.astype(np.float64)):
        for c in range(len(known.concepts)):
            for view in known.descriptors[c][known.valid[c]].astype(np.float64):
                cosine = proposal @ view / np.sqrt((proposal @ proposal) * (view @ view))
                result[m, c] = max(result[m, c], cosine)
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("resident", [0, 1 << 28])
def test_chunks_change_nothing(monkeypatch, dtype, resident) -> None:
    monkeypatch.setattr(retrieval, "RESIDENT_BYTES", resident)
    monkeypatch.setattr(retrieval, "CHUNK_VIEWS", 7)  # neither a multiple of the views nor a divisor of the concepts
    rng = np.random.default_rng(1)
    known = random_gallery(rng, 11, 3, dtype)
    proposals = rng.standard_normal((6, WIDTH)).astype(np.float32)
    found = retrieval.Matcher(known, torch.device("cpu")).best(torch.from_numpy(proposals))
    expected = plain_similarities(proposals, known)
    np.testing.assert_array_equal(found.concepts, expected.argmax(1))
    np.testing.assert_array_equal(found.proposals, expected.argmax(0))
    np.testing.assert_allclose(found.scores, expected.max(1), atol=2e-6)
    np.testing.assert_allclose(found.nearest, expected.max(0), atol=2e-6)


@pytest.mark.parametrize("resident", [0, 1 << 28])
def test_of_equal_concepts_the_first_counts_whatever_its_chunk(monkeypatch, resident) -> None:
    monkeypatch.setattr(retrieval, "RESIDENT_BYTES", resident)
    monkeypatch.setattr(retrieval, "CHUNK_VIEWS", 4)
    known = random_gallery(np.random.default_rng(3), 9, 1, np.float32)
    known.descriptors[[2, 3, 8]] = 0.0
    known.descriptors[[2, 3, 8], 0, 0] = [1.0, 2.0, 4.0]  # the same direction
    proposals = torch.zeros((2, WIDTH))
    proposals[:, 0] = 1
    found = retrieval.Matcher(known, torch.device("cpu")).best(proposals)
    assert found.concepts.tolist() == [2, 2]
    assert found.proposals[2] == 0


def test_half_precision_keeps_decisions_but_ties_below_a_thousandth() -> None:
    rng = np.random.default_rng(2)
    known = random_gallery(rng, 40, 5, np.float32)
    halved = Gallery(known.concepts, known.descriptors.astype(np.float16), known.valid)
    proposals = torch.from_numpy(rng.standard_normal((500, WIDTH)).astype(np.float32))
    exact = retrieval.Matcher(known, torch.device("cpu")).best(proposals)
    half = retrieval.Matcher(halved, torch.device("cpu")).best(proposals)
    two = np.sort(plain_similarities(proposals.numpy(), known), axis=1)[:, -2:]
    clear = (two[:, 1] - two[:, 0] > 1e-3) & (abs(two[:, 1] - 0.75) > 1e-3)
    assert clear.sum() > 400
    assert np.array_equal(exact.concepts[clear], half.concepts[clear])
    assert np.array_equal(exact.scores[clear] > 0.75, half.scores[clear] > 0.75)
    assert 0 < (exact.scores > 0.75).sum() < 500  # the threshold decides something


def test_the_gallery_file_is_safe_and_half_the_size(stored, monkeypatch) -> None:
    folder, concepts = stored
    consolidate(monkeypatch)
    gallery.load_gallery(folder, concepts, "augment", 20, seed=0)
    file = folder / CONSOLIDATED
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    assert header["rows"]["dtype"] == "F16"
    assert header["rows"]["shape"] == [40, WIDTH]
    assert not [name for name in os.listdir(folder) if name.endswith(".partial")]
