"""The bank of drawn scenes: the same from the same seed, paired, and augmented without its labels going astray."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pekit.sample.drawing import random_instance
from pekit.sample.train.scenes import SceneBank, StoredScene, augment, label_boxes, open_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SceneBank:
    return open_bank(tmp_path_factory.mktemp("work"), seed=3, n_scenes=6, size=96, workers=1)


def test_a_larger_bank_begins_with_the_smaller_one(bank: SceneBank, tmp_path: Path) -> None:
    smaller = open_bank(tmp_path, seed=3, n_scenes=4, size=96, workers=2)
    np.testing.assert_array_equal(smaller.images, bank.images[:4])
    assert smaller.instances == bank.instances[:4]
    assert not np.array_equal(open_bank(tmp_path, seed=4, n_scenes=4, size=96, workers=1).images, smaller.images)


def test_pairs_show_the_same_main_instance_of_the_training_pool(bank: SceneBank) -> None:
    for index in range(0, len(bank), 2):
        assert bank[index].instances[0] == bank[index + 1].instances[0]
        assert not np.array_equal(bank[index].image, bank[index + 1].image)
    assert {instance.pool for instances in bank.instances for instance in instances} == {"train"}


def test_stored_boxes_are_those_of_the_stored_labels(bank: SceneBank) -> None:
    for scene in (bank[index] for index in range(len(bank))):
        np.testing.assert_array_equal(label_boxes(scene.labels, len(scene.instances)), scene.boxes_xyxy)


def test_augmentation_moves_labels_with_the_picture() -> None:
    instances = tuple(random_instance(np.random.default_rng(seed)) for seed in (1, 2))
    labels = np.zeros((100, 100), np.uint8)
    labels[40:60, 10:50], labels[45:80, 60:75] = 1, 2
    image = np.full((100, 100, 3), 60, np.uint8)
    image[labels == 1], image[labels == 2] = (220, 60, 60), (60, 60, 220)
    scene = StoredScene(image, labels, label_boxes(labels, 2), instances)
    for seed in range(30):
        view = augment(np.random.default_rng(seed), scene, 50)
        assert view.image.shape == (50, 50, 3) and view.labels.shape == (50, 50)
        np.testing.assert_array_equal(label_boxes(view.labels, len(view.instances)), view.boxes_xyxy)
        for k, instance in enumerate(view.instances, 1):
            channel = 0 if instance == instances[0] else 2
            pixels = view.image[view.labels == k].astype(float)
            assert pixels[:, channel].mean() > pixels[:, 2 - channel].mean() + 60


def test_an_object_mostly_out_of_view_is_dropped_and_the_rest_renumbered() -> None:
    instances = tuple(random_instance(np.random.default_rng(seed)) for seed in (1, 2))
    labels = np.zeros((100, 100), np.uint8)
    labels[:, :8], labels[40:60, 40:60] = 1, 2
    scene = StoredScene(np.zeros((100, 100, 3), np.uint8), labels, label_boxes(labels, 2), instances)
    views = [augment(np.random.default_rng(seed), scene, 50) for seed in range(30)]
    assert {len(view.instances) for view in views} == {1, 2}
    for view in views:
        assert view.instances[-1] == instances[1]
        assert view.labels[view.labels > 0].max() == len(view.instances)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc for processes")
def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    dead, alive = (tmp_path / f"scenes-train-9-9px-1.partial-{pid}" for pid in (child.pid, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir()
    open_bank(tmp_path, 3, n_scenes=2, size=64, workers=1)
    assert not dead.exists() and alive.exists()


def test_a_bank_that_is_stopped_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path, *args: object) -> None:
        (folder / "images.npy").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("pekit.sample.train.scenes._draw_bank", stop)
    with pytest.raises(KeyboardInterrupt):
        open_bank(tmp_path, seed=3, n_scenes=4, size=96, workers=1)
    assert list(tmp_path.iterdir()) == []
