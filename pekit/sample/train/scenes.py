"""A bank of drawn scenes on disk, made once by worker processes and read by every training.

Drawing a scene costs more than a small network's step on it, so the trainings share one bank and vary what they read
from it with cheap augmentation. Scenes come in pairs: scenes 2k and 2k+1 both show the same main instance (their object
0) among other company, which is what a training of instance features needs and does no harm to the others.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pekit.sample.drawing import Instance, Scene, draw_scene, look_alike, mask_box, random_instance
from pekit.start import interrupts_held_back

log = logging.getLogger(__name__)

SIZE, DETAILED = 224, 320  # px; the latter for those that look from near
N_SCENES = 12_000
_CHUNK = 50
_OBJECT_COUNTS = (0.34, 0.22, 0.18, 0.14, 0.12)


@dataclass(frozen=True)
class StoredScene:
    """One scene of a bank, or an augmented view of one.

    Attributes:
        image: uint8 (S, S, 3) RGB.
        labels: uint8 (S, S); 0 where no object is visible, k where object k - 1 is.
        boxes_xyxy: float32 (N, 4) pixel corners of the visible masks, right and bottom exclusive.
        instances: the N objects drawn.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray
    instances: tuple[Instance, ...]


class SceneBank:
    """Read-only sequence of the scenes in a folder that `open_bank` filled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy", mmap_mode="r")
        records = json.loads((folder / "objects.json").read_text())
        self.boxes = [np.array(scene["boxes_xyxy"], np.float32).reshape(-1, 4) for scene in records]
        self.instances = [tuple(map(_instance, scene["instances"])) for scene in records]

    def __reduce__(self) -> tuple[type["SceneBank"], tuple[Path]]:
        return SceneBank, (self._folder,)  # a process that receives a bank maps the files itself

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> StoredScene:
        return StoredScene(self.images[index], self.labels[index], self.boxes[index], self.instances[index])


def open_bank(work: Path, seed: int, n_scenes: int = N_SCENES, size: int = SIZE, *, workers: int) -> SceneBank:
    """Opens the bank of this description, drawing it first when no training has done so yet.

    Args:
        work: folder that holds the banks; trainings given the same one share them.
        seed: scene i depends on the seed and i alone, so a larger bank begins with the smaller one.
        n_scenes: even number of scenes.
        size: side of the square scenes in px.
        workers: processes that draw; one for 0, too.

    Returns:
        The bank, its arrays mapped from disk.
    """
    folder = work / f"scenes-{n_scenes}-{size}px-{seed}"
    for left in work.glob("scenes-*.partial-*"):
        if not Path("/proc", left.suffix.rpartition("-")[2]).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
    if not folder.exists():
        partial = folder.with_suffix(f".partial-{os.getpid()}")
        partial.mkdir(parents=True)
        log.info("drawing %d scenes of %d px, which stay in %s for other runs of this seed", n_scenes, size, work)
        try:
            _draw_bank(partial, seed, n_scenes, size, max(1, workers))
            partial.rename(folder)
        except OSError:  # another training may have been faster; its bank is the same
            if not folder.exists():
                raise
        finally:  # stopped by hand or on a full disk, it would leave gigabytes behind
            shutil.rmtree(partial, ignore_errors=True)
    return SceneBank(folder)


def as_stored(scene: Scene) -> StoredScene:
    """A drawn scene as a bank keeps it."""
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for k, drawn in enumerate(scene.objects, 1):
        labels[drawn.mask] = k
    boxes = np.array([drawn.box_xyxy for drawn in scene.objects], np.float32).reshape(-1, 4)
    return StoredScene(scene.image, labels, boxes, tuple(drawn.instance for drawn in scene.objects))


def draw_pair(rng: np.random.Generator, size: int) -> tuple[Scene, Scene]:
    """Draws two scenes that show the same main instance, object 0 of both, each among its own company.

    Args:
        rng: source of every choice.
        size: side of the square scenes in px.

    Returns:
        The two scenes; each has 1 to 5 objects, look-alikes of the main one among them now and then.
    """
    main = random_instance(rng)
    return _scene_of(rng, main, size), _scene_of(rng, main, size)


def augment(rng: np.random.Generator, scene: StoredScene, side: int) -> StoredScene:
    """Views a stored scene through a random window, perhaps mirrored, in slightly different light.

    The window's aspect ratio is free, so objects are squashed as photos are on their way to the models. Hues stay as
    drawn: colour names must stay true.

    Args:
        rng: source of every choice.
        scene: as stored; not changed.
        side: side of the result in px.

    Returns:
        A square view. Objects the window shows less than a third of are dropped from its labels.
    """
    size = scene.image.shape[0]
    width, height = rng.uniform(0.7, 1.0, 2) * size if rng.random() < 0.7 else (size, size)
    left, top = rng.uniform(0, size - width), rng.uniform(0, size - height)
    window = (left, top, left + width, top + height)
    view = Image.fromarray(scene.image).resize((side, side), Image.Resampling.BILINEAR, box=window)
    labels = np.asarray(Image.fromarray(scene.labels).resize((side, side), Image.Resampling.NEAREST, box=window))
    scaled_area = (width / side) * (height / side)
    image = np.asarray(view, np.float32)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
    image = np.clip((image - 128) * gain + 128 + offset, 0, 255).astype(np.uint8)
    before = np.bincount(scene.labels.ravel(), minlength=len(scene.instances) + 1)
    after = np.bincount(labels.ravel(), minlength=len(scene.instances) + 1) * scaled_area
    kept = [k for k in range(1, len(scene.instances) + 1) if after[k] > 0 and after[k] > before[k] / 3]
    relabel = np.zeros(len(scene.instances) + 1, np.uint8)
    relabel[kept] = np.arange(1, len(kept) + 1)
    labels = relabel[labels]
    return StoredScene(image, labels, label_boxes(labels, len(kept)), tuple(scene.instances[k - 1] for k in kept))


def label_boxes(labels: np.ndarray, n_objects: int) -> np.ndarray:
    """Finds the tight boxes of labelled objects, each of which must be visible.

    Args:
        labels: uint8 (H, W), k where object k - 1 is.
        n_objects: N.

    Returns:
        float32 (N, 4) pixel corners, right and bottom exclusive.
    """
    boxes = np.zeros((n_objects, 4), np.float32)
    for k in range(n_objects):
        boxes[k] = mask_box(labels == k + 1)
    return boxes


def _scene_of(rng: np.random.Generator, main: Instance, size: int) -> Scene:
    instances = [main, *_company(rng, main)]
    order = rng.permutation(len(instances))  # from back to front
    scene = draw_scene(rng, [instances[index] for index in order], (size, size))
    return Scene(scene.image, tuple(scene.objects[position] for position in np.argsort(order)))


def _company(rng: np.random.Generator, main: Instance) -> Iterator[Instance]:
    for _ in range(rng.choice(len(_OBJECT_COUNTS), p=_OBJECT_COUNTS)):
        kind = rng.random()
        if kind < 0.3:
            yield look_alike(rng, main)
        else:
            yield random_instance(rng, main.category if kind < 0.4 else None)


def _instance(record: dict[str, Any]) -> Instance:
    return Instance(**{**record, "proportions": tuple(record["proportions"])})


def _draw_bank(folder: Path, seed: int, n_scenes: int, size: int, workers: int) -> None:
    shape = (n_scenes, size, size)
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (*shape, 3)).flush()
    np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, shape).flush()
    chunks = [(folder, seed, start, min(start + _CHUNK, n_scenes), size) for start in range(0, n_scenes, _CHUNK)]
    # Forking a process that has run torch operations can hang in the child, so the workers start afresh.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        with interrupts_held_back():
            drawn = executor.map(_draw_chunk, chunks)
        records = [record for chunk in drawn for record in chunk]
    (folder / "objects.json").write_text(json.dumps(records))


def _draw_chunk(chunk: tuple[Path, int, int, int, int]) -> list[dict[str, Any]]:
    folder, seed, start, stop, size = chunk
    images = np.load(folder / "images.npy", mmap_mode="r+")
    labels = np.load(folder / "labels.npy", mmap_mode="r+")
    records = []
    for first in range(start, stop, 2):
        rng = np.random.default_rng([seed, 0, first])  # the 0 as when the shipped checkpoints were trained
        for index, scene in enumerate(map(as_stored, draw_pair(rng, size)), first):
            images[index], labels[index] = scene.image, scene.labels
            records.append({"boxes_xyxy": scene.boxes_xyxy.tolist(), "instances": [*map(asdict, scene.instances)]})
    return records
