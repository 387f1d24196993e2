"""Photos to model inputs: the squash, the augmentations, and that order and workers do not matter."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, picture, script_environment, write_photos
from PIL import Image

from pekit import pictures
from pekit.pictures import Batch, Task, _Pictures, augment, load_batches
from pekit.records import LoadingSettings, Photo


def as_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy())


def own_process(_: Image.Image) -> torch.Tensor:
    return torch.tensor([os.getpid()])


PREPARE, WHO = {"features": as_pixels}, {"features": own_process}


def tasks(folder: Path, names: list[str], augmentations: int = 0) -> list[Task]:
    return [
        Task(Photo(folder / name, f"data/{name}", ("mug",)), number)
        for name in names
        for number in range(augmentations + 1)
    ]


def loaded(work: list[Task], workers: int = 0, batch_size: int = 2, seed: int = 42) -> dict[tuple, np.ndarray]:
    found = {}
    for batch in load_batches(work, 64, PREPARE, LoadingSettings(batch_size, workers), batch_size, seed):
        for task, pixels in zip(batch.tasks, batch.inputs["features"], strict=True):
            found[task.photo.path.name, task.augmentation] = pixels.numpy()
    return found


class TestAugment:
    def test_repeatable_and_different_for_each_number_photo_and_seed(self) -> None:
        image = picture(1, (120, 90))
        first = np.asarray(augment(image, 42, "a.png", 1))
        np.testing.assert_array_equal(np.asarray(augment(image, 42, "a.png", 1)), first)
        for other in ((42, "a.png", 2), (42, "b.png", 1), (43, "a.png", 1)):
            assert np.abs(np.asarray(augment(image, *other)).astype(int) - first).mean() > 1

    def test_photos_of_one_name_in_two_folders_are_turned_differently(self) -> None:
        image = picture(1, (120, 90))
        one, other = (np.asarray(augment(image, 42, f"train/{key}/0.png", 1)).astype(int) for key in ("mug", "lamp"))
        assert np.abs(one - other).mean() > 1

    def test_nothing_else_that_is_random_plays_a_part(self) -> None:
        image = picture(1, (120, 90))
        first = np.asarray(augment(image, 42, "a.png", 1))
        np.random.seed(5)
        torch.manual_seed(5)
        for number in (3, 2):
            augment(image, 42, "a.png", number)
        np.testing.assert_array_equal(np.asarray(augment(image, 42, "a.png", 1)), first)

    def test_rotations_within_thirty_degrees_with_black_corners_and_flips(self) -> None:
        """Two dots of different colours on white show by how much, and whether mirrored, a picture came back."""
        side, reach = 201, 60
        values = np.full((side, side, 3), 255, dtype=np.uint8)
        ys, xs = np.mgrid[:side, :side]
        right = (ys - 100) ** 2 + (xs - 100 - reach) ** 2 < 64
        below = (ys - 100 - reach) ** 2 + (xs - 100) ** 2 < 64
        values[right], values[below] = (255, 0, 0), (0, 0, 255)
        image = Image.fromarray(values)
        angles, flips = [], []
        for number in range(1, 121):
            found = np.asarray(augment(image, 0, "dots.png", number)).astype(int)
            assert found.shape == values.shape  # size kept
            red = (found[..., 0] > 150) & (found[..., 2] < 100)
            blue = (found[..., 2] > 150) & (found[..., 0] < 100)
            (red_y, red_x), (blue_y, blue_x) = (np.argwhere(dot).mean(0) - 100 for dot in (red, blue))
            mirrored = red_x < 0
            flips.append(mirrored)
            angle = np.degrees(np.arctan2(red_y, -red_x if mirrored else red_x))
            assert np.hypot(red_y, red_x) == pytest.approx(reach, abs=2)  # neither scaled nor moved
            assert np.degrees(np.arctan2(blue_y, -blue_x if mirrored else blue_x)) == pytest.approx(angle + 90, abs=3)
            angles.append(angle)
            if abs(angle) > 10:
                assert found[0, 0].max() < 60 and found[-1, -1].max() < 60 and found[0, -1].max() < 60
        assert -31 < min(angles) < -20 and 20 < max(angles) < 31
        assert abs(np.mean(angles)) < 6 and np.std(angles) > 12  # even over ±30: a deviation of 17
        assert 40 < sum(flips) < 80
        left, mirrored = np.array(angles) < 0, np.array(flips)
        for side_of_rotation in (left, ~left):  # either may be flipped or not
            assert 0.3 < mirrored[side_of_rotation].mean() < 0.7

    def test_rotations_reach_thirty_degrees_and_no_more(self) -> None:
        """A dot far out, right of the middle, tells the angle to a tenth of a degree, flipped or not."""
        ys, xs = np.mgrid[-200:201, -200:201]
        dot = ((xs - 180) ** 2 + ys**2 < 100).astype(np.uint8) * 255
        image = Image.fromarray(np.stack([dot] * 3, axis=-1))
        angles = []
        for number in range(1, 201):
            y, x = (np.argwhere(np.asarray(augment(image, 0, "dot.png", number))[..., 0] > 127) - 200).mean(0)
            angles.append(np.degrees(np.arctan2(y, abs(x))))
        assert -30.1 < min(angles) < -28 and 28 < max(angles) < 30.1

    def test_what_a_seed_draws_stays_the_same(self) -> None:
        """Else ``AUGMENTATION`` has to go up, for old and new views of one photo would be alike by chance alone."""
        assert pictures.AUGMENTATION == 2
        ys, xs = np.mgrid[-200:201, -200:201]
        dot = ((xs - 180) ** 2 + ys**2 < 100).astype(np.uint8) * 255
        image = Image.fromarray(np.stack([dot] * 3, axis=-1))
        found = []
        for number in range(1, 7):
            drawn = np.asarray(augment(image, 42, "train/mug/0.png", number))
            y, x = (np.argwhere(drawn[..., 0] > 127) - 200).mean(0)
            found.append((np.degrees(np.arctan2(y, abs(x))), x < 0))
        # -random.Random(r).uniform(-30, 30) and random.Random(f).random() < 0.5, where r and f are the first and the
        # next four bytes of the SHA-256 of "42/train/mug/0.png/<number>"
        np.testing.assert_allclose([angle for angle, _ in found], [-16.5, 24.5, -14.0, -12.7, 1.0, 8.8], atol=0.3)
        assert [flipped for _, flipped in found] == [False, True, False, False, False, False]

    def test_no_newer_version_of_the_library_is_looked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
        pictures.import_albumentations()
        assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_photos(tmp_path, ["0.png", "1.png", "2.png"], size=(90, 50))
        return tmp_path

    def test_view_0_is_the_untouched_photo_squashed(self, folder: Path) -> None:
        found = loaded(tasks(folder, ["0.png", "1.png"], augmentations=1))
        for name in ("0.png", "1.png"):
            with Image.open(folder / name) as image:
                expected = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(found[name, 0], expected)

    def test_photos_are_turned_where_asked_for(self, folder: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown right is a quarter turn clockwise
        picture(9, (90, 50)).save(folder / "0.png", exif=exif)
        for exif_applied, shown in (
            (False, picture(9, (90, 50))),
            (True, picture(9, (90, 50)).rotate(-90, expand=True)),
        ):
            loading = LoadingSettings(1, 0, exif=exif_applied)
            (batch,) = load_batches(tasks(folder, ["0.png"]), 64, PREPARE, loading, 1)
            expected = np.asarray(shown.resize((64, 64), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(batch.inputs["features"][0].numpy(), expected)

    def test_augmentation_comes_before_the_squash(self, folder: Path) -> None:
        found = loaded(tasks(folder, ["0.png"], augmentations=2))
        with Image.open(folder / "0.png") as image:
            rotated = augment(image.convert("RGB"), 42, "data/0.png", 2)
        assert rotated.size == (90, 50)
        expected = np.asarray(rotated.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(found["0.png", 2], expected)

    def test_workers_order_and_missing_parts_do_not_matter(self, folder: Path) -> None:
        everything = tasks(folder, ["0.png", "1.png", "2.png"], augmentations=3)
        expected = loaded(everything)
        assert len(expected) == 12
        for found in (
            loaded(everything, workers=2, batch_size=1),
            loaded(everything[::-1], batch_size=5),
            loaded(everything[7:]),
        ):
            for key, pixels in found.items():
                np.testing.assert_array_equal(pixels, expected[key])

    def test_an_augmented_run_begins_as_a_shorter_one(self, folder: Path) -> None:
        long, short = (loaded(tasks(folder, ["0.png"], augmentations=n)) for n in (4, 2))
        for key, pixels in short.items():
            np.testing.assert_array_equal(pixels, long[key])

    def test_batches_in_the_order_of_the_tasks(self, folder: Path) -> None:
        work = tasks(folder, ["2.png", "0.png", "1.png"])
        batches = list(load_batches(work, 32, PREPARE, LoadingSettings(2, 0), 2))
        assert [len(batch) for batch in batches] == [2, 1]
        assert [task for batch in batches for task in batch.tasks] == work

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_unreadable_photo_is_reported_and_the_others_come(self, folder: Path, workers: int) -> None:
        (folder / "1.png").write_bytes(b"no image")
        work = tasks(folder, ["0.png", "1.png", "2.png"], augmentations=1)
        batches = list(load_batches(work, 32, PREPARE, LoadingSettings(3, workers), 3))
        assert [t for b in batches for t in b.tasks] == [t for t in work if t.photo.path.name != "1.png"]
        failed = [(task, reason) for batch in batches for task, reason in batch.failed]
        assert [task for task, _ in failed] == [t for t in work if t.photo.path.name == "1.png"]
        assert all("1.png" in reason for _, reason in failed)

    def test_a_batch_of_unreadable_photos_alone(self, folder: Path) -> None:
        (folder / "0.png").write_bytes(b"")
        (batch,) = load_batches(tasks(folder, ["0.png"]), 32, PREPARE, LoadingSettings(1, 0), 1)
        assert len(batch) == 0 and len(batch.failed) == 1

    def test_pictures_are_kept_where_asked_for(self, folder: Path) -> None:
        work = tasks(folder, ["0.png"])
        (batch,) = load_batches(work, 32, PREPARE, LoadingSettings(1, 0), 1, keep_pictures=True)
        assert [image.size for image in batch.pictures] == [(32, 32)]
        (batch,) = load_batches(work, 32, PREPARE, LoadingSettings(1, 0), 1)
        assert batch.pictures == []

    def test_nothing_to_load(self) -> None:
        assert list(load_batches([], 32, PREPARE, LoadingSettings(1, 2), 1)) == []

    def test_workers_can_be_started_on_any_system(self, folder: Path) -> None:
        """macOS, and Python from 3.14 on, hand the data set to its workers by pickle."""
        copy = pickle.loads(pickle.dumps(_Pictures(tasks(folder, ["0.png"]), 1, 32, PREPARE, False, 0, False)))
        assert copy[0].tasks[0].photo.path.name == "0.png"

    def test_a_photo_is_decoded_once_for_four_augmentations(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[str] = []
        real = pictures.open_image
        monkeypatch.setattr(pictures, "open_image", lambda path, exif: opened.append(path.name) or real(path, exif))
        work = tasks(folder, ["0.png", "1.png"], augmentations=5)  # six pictures each: 4, 2 and 2, 4
        assert len(loaded(work, batch_size=1)) == 12
        assert opened == ["0.png"] * 2 + ["1.png"] * 2

    @pytest.mark.parametrize(("batch_size", "workers", "most"), [(96, 1, 20), (96, 2, 20), (3, 3, 12)])
    def test_few_file_handles_are_held(self, folder: Path, batch_size: int, workers: int, most: int) -> None:
        """Many systems allow a process 1024, and every tensor that a worker hands over takes one."""
        work = tasks(folder, ["0.png", "1.png", "2.png"]) * 64
        before = len(os.listdir("/dev/fd"))
        held = []
        for batch in load_batches(work, 28, PREPARE, LoadingSettings(batch_size, workers), batch_size):
            held.append(len(os.listdir("/dev/fd")) - before)
            del batch
        assert max(held) <= most + 10 * workers  # each worker has some of its own

    @pytest.mark.parametrize("workers", [2, 3])
    def test_the_first_batch_is_the_work_of_all_workers(self, folder: Path, workers: int) -> None:
        """Were batches made by one worker each, the models would wait for the first as long as for that many."""
        batches = load_batches(tasks(folder, ["0.png", "1.png", "2.png"]), 32, WHO, LoadingSettings(3, workers), 3)
        assert len({int(who) for who in next(batches).inputs["features"]}) == workers

    def test_a_worker_that_is_left_alone_tells_nothing(self) -> None:
        script = (
            "import sys; from pekit.pictures import _start_worker; _start_worker(0)\n"
            "for kind in (ConnectionResetError, BrokenPipeError, ValueError):\n"
            "    sys.excepthook(kind, kind('of no use'), None)\n"
        )
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, capture_output=True, text=True, env=script_environment(PYTHONPATH=str(ROOT)))
        assert result.returncode == 0 and result.stderr == "ValueError: of no use\n"

    def test_part_of_a_batch(self) -> None:
        work = [Task(Photo(Path(f"{n}.png"), f"{n}.png")) for n in range(4)]
        batch = Batch(work, {"x": list(torch.arange(4))}, [], [(work[0], "why")])
        piece = batch.part(1, 3)
        assert piece.tasks == work[1:3] and piece.inputs["x"] == [1, 2] and not piece.failed

    def test_nothing_of_a_batch_is_lost_on_its_way_to_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: values + 1)
        work = [Task(Photo(Path(f"{n}.png"), f"{n}.png")) for n in range(3)]
        batch = Batch(work[:2], {"x": torch.arange(2)}, [picture(1), picture(2)], [(work[2], "why")])
        pinned = batch.pin_memory()
        assert (pinned.tasks, pinned.pictures, pinned.failed) == (batch.tasks, batch.pictures, batch.failed)
        assert pinned.inputs["x"].tolist() == [1, 2]

    def test_the_loader_pins_where_it_is_asked_to(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "1.png").write_bytes(b"no image")
        monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)  # else the loader pins nothing
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values, *_: values // 2)
        work, options = tasks(folder, ["0.png", "1.png", "2.png"]), {"keep_pictures": True}
        (plain,) = load_batches(work, 32, PREPARE, LoadingSettings(3, 0), 3, **options)
        (pinned,) = load_batches(work, 32, PREPARE, LoadingSettings(3, 0), 3, pin=True, **options)
        assert (pinned.tasks, pinned.pictures, pinned.failed) == (plain.tasks, plain.pictures, plain.failed)
        for one, other in zip(pinned.inputs["features"], plain.inputs["features"], strict=True):
            assert torch.equal(one, other // 2)
