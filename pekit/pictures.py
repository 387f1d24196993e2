"""Photos to model inputs, in loader workers ahead of the models: decode, augment, squash once, prepare for each."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pekit.cli import LoadingSettings
from pekit.datasets import open_image, squash
from pekit.files import digest_if_readable
from pekit.records import Photo, PhotoError, UserError

ROTATION_LIMIT = 30
FLIP_PROBABILITY = 0.5
MOST_AT_ONCE = 8  # pictures of one photo
BATCHES_AHEAD = 2
AUGMENTATION = 2  # goes up when the same seed draws other augmentations than before; 1 tied the flip to the rotation


@dataclass(frozen=True)
class Task:
    """One picture to make: a photo, or one of its augmentations (0 is the untouched photo).

    Once it is made, ``digest`` tells from which content of the photo's file.
    """

    photo: Photo
    augmentation: int = 0
    digest: str = field(default="", compare=False)


@dataclass(frozen=True)
class Batch:
    """Prepared pictures.

    Attributes:
        tasks: B tasks whose photos could be read.
        inputs: role -> B of u8 (3, h, w), as the ``prepare`` of that role's model makes them.
        pictures: B squashed RGB pictures, S x S, where asked for; else empty.
        failed: tasks whose photos could not be read, with the reason.
    """

    tasks: list[Task]
    inputs: dict[str, list[torch.Tensor]]
    pictures: list[Image.Image] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tasks)

    def part(self, first: int, last: int) -> Batch:
        """Pictures first..last-1, without the failed ones."""
        inputs = {role: values[first:last] for role, values in self.inputs.items()}
        return Batch(self.tasks[first:last], inputs, self.pictures[first:last])


# One picture as the workers hand it over: task, why it could not be read, role -> u8 (3, h, w), the squashed picture.
_Prepared: TypeAlias = tuple[Task, str | None, dict[str, torch.Tensor], Image.Image | None]


def import_albumentations() -> ModuleType:
    """The library that draws augmentations, imported where there are any to draw.

    Raises:
        UserError: it is not there, or what it needs of the system is not.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look online for a newer version
    try:
        import albumentations
    except ImportError as error:
        # Of opencv-python and -headless, which share a folder, the one installed last is there; only one needs libGL.
        raise UserError(
            f"--variation augment needs albumentations, which cannot be imported ({error}): run pip install "
            "albumentations, or where libGL is missing pip install --force-reinstall --no-deps opencv-python-headless"
        ) from None
    return albumentations


def augment(image: Image.Image, seed: int, photo: str, augmentation: int) -> Image.Image:
    """A random rotation within ±30° (corners black, size kept), then a flip with probability 1/2.

    The draw depends on the seed, the photo's name and the augmentation's number alone, so workers, order and
    resuming do not matter.

    Args:
        image: RGB, at the photo's own size.
        seed: of all augmentations.
        photo: the photo's path relative to the data folder.
        augmentation: from 1; 0 is the untouched photo, which does not come here.

    Returns:
        A new RGB picture of the same size.
    """
    albumentations = import_albumentations()
    key = hashlib.sha256(f"{seed}/{photo}/{augmentation}".encode()).digest()
    transform = albumentations.Compose(
        [
            albumentations.Rotate(limit=ROTATION_LIMIT, border_mode=0, fill=0, p=1.0),  # 0: constant border
            albumentations.HorizontalFlip(p=FLIP_PROBABILITY),
        ]
    )
    # Compose would give one seed to both, and their equal draws would tie the flip to the direction of the rotation.
    for i, part in enumerate(transform.transforms):
        part.set_random_seed(int.from_bytes(key[4 * i : 4 * i + 4], "big"))
    return Image.fromarray(transform(image=np.asarray(image))["image"])


class _Pictures(Dataset):
    """Prepared pictures, those of one photo at a time, which is decoded once."""

    def __init__(
        self,
        tasks: Sequence[Task],
        size: int,
        prepare: Mapping[str, Callable[[Image.Image], torch.Tensor]],
        exif: bool,
        seed: int,
        keep: bool,
    ) -> None:
        photos = [list(own) for _, own in groupby(tasks, key=lambda task: task.photo)]
        self.parts = [own[first : first + MOST_AT_ONCE] for own in photos for first in range(0, len(own), MOST_AT_ONCE)]
        self.size, self.prepare, self.exif, self.seed, self.keep = size, prepare, exif, seed, keep

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> list[_Prepared]:
        tasks = self.parts[index]
        path = tasks[0].photo.path
        digest = digest_if_readable(path)  # first: one replaced in between is then found to have changed
        try:
            image = open_image(path, self.exif)
        except PhotoError as error:
            return [(task, str(error), {}, None) for task in tasks]
        return [self._prepared(replace(task, digest=digest), image) for task in tasks]

    def _prepared(self, task: Task, image: Image.Image) -> _Prepared:
        if task.augmentation:
            image = augment(image, self.seed, task.photo.name, task.augmentation)
        picture = squash(image, self.size)
        inputs = {role: prepare(picture) for role, prepare in self.prepare.items()}
        if get_worker_info():  # left to the queue's own thread, a full /dev/shm would lose them without an error
            inputs = {role: values.share_memory_() for role, values in inputs.items()}
        return task, None, inputs, picture if self.keep else None


def _as_it_is(prepared: list[_Prepared]) -> list[_Prepared]:
    return prepared


def _batch(items: Sequence[_Prepared], roles: Iterable[str]) -> Batch:
    good = [item for item in items if item[1] is None]
    inputs = {role: [item[2][role] for item in good] for role in roles}
    pictures = [item[3] for item in good if item[3] is not None]
    return Batch([item[0] for item in good], inputs, pictures, [(item[0], item[1]) for item in items if item[1]])


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    sys.excepthook = _told_unless_alone


def _told_unless_alone(kind: type[BaseException], *error: Any) -> None:
    """Of a worker's thread that hands pictures over; where the main process was stopped, there is nothing to tell."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, *error)


def load_batches(
    tasks: Sequence[Task],
    size: int,
    prepare: Mapping[str, Callable[[Image.Image], torch.Tensor]],
    loading: LoadingSettings,
    batch_size: int,
    seed: int = 0,
    pin: bool = False,
    keep_pictures: bool = False,
) -> Iterator[Batch]:
    """Prepare pictures in the order of the tasks.

    Args:
        tasks: what to prepare.
        size: side S of the squashed picture in px.
        prepare: role -> function from the squashed picture to that model's input.
        loading: worker processes, EXIF.
        batch_size: pictures per batch.
        seed: of the augmentations.
        pin: hand inputs over in pinned memory.
        keep_pictures: hand the squashed pictures on as well.

    Returns:
        Batches; together they hold every task once, as a picture or as failed.
    """
    photos = _Pictures(tasks, size, prepare, loading.exif, seed, keep_pictures)
    workers = min(loading.num_workers, len(photos))
    ahead = -(-BATCHES_AHEAD * batch_size * len(photos) // (len(tasks) * workers)) if workers else 0
    loader = DataLoader(
        photos,
        batch_size=None,  # by photo, else the first batch would be one worker's alone while the model waits
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        prefetch_factor=max(2, ahead) if workers else None,  # in photos: they lie in /dev/shm
        pin_memory=pin,
    )
    pictures = chain.from_iterable(loader)
    while items := list(islice(pictures, batch_size)):
        yield _batch(items, prepare)
