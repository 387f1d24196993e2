"""Photos to model inputs, in loader workers ahead of the models: decode, augment, squash once, prepare for each."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pekit.files import digest_if_readable
from pekit.photos import open_image, squash
from pekit.records import LoadingSettings, Photo, PhotoError, UserError

ROTATION_LIMIT = 30
FLIP_PROBABILITY = 0.5
MOST_AT_ONCE = 16  # pictures that a worker hands over
OF_ONE_PHOTO = 4  # of its augmentations, so that it is decoded a few times at most
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
        inputs: role -> B of u8 (3, h, w), as the ``prepare`` of that role's model makes them; stacked on their way from
            a worker, for every tensor takes a file handle.
        pictures: B squashed RGB pictures, S x S, where asked for; else empty.
        failed: tasks whose photos could not be read, with the reason.
    """

    tasks: list[Task]
    inputs: dict[str, Sequence[torch.Tensor]]
    pictures: list[Image.Image] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tasks)

    def part(self, first: int, last: int) -> Batch:
        """Pictures first..last-1, without the failed ones."""
        inputs = {role: values[first:last] for role, values in self.inputs.items()}
        return Batch(self.tasks[first:last], inputs, self.pictures[first:last])

    def pin_memory(self) -> Batch:
        """Pinned copies of stacked inputs, as the loader asks for on GPUs."""
        inputs: dict[str, Any] = self.inputs
        return replace(self, inputs={role: stacked.pin_memory() for role, stacked in inputs.items()})


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
    """Prepared pictures, ``step`` at a time; of those, each photo is decoded once."""

    def __init__(
        self,
        tasks: Sequence[Task],
        step: int,
        size: int,
        prepare: Mapping[str, Callable[[Image.Image], torch.Tensor]],
        exif: bool,
        seed: int,
        keep: bool,
    ) -> None:
        self.parts = [tasks[first : first + step] for first in range(0, len(tasks), step)]
        self.size, self.prepare, self.exif, self.seed, self.keep = size, prepare, exif, seed, keep

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        batch = Batch([], {})
        for photo, tasks in groupby(self.parts[index], key=lambda task: task.photo):
            digest = digest_if_readable(photo.path)  # first: one replaced in between is then found to have changed
            try:
                image = open_image(photo.path, self.exif)
            except PhotoError as error:
                batch.failed.extend((task, str(error)) for task in tasks)
                continue
            for task in tasks:
                batch.tasks.append(replace(task, digest=digest))
                batch.pictures.append(self._squashed(task, image))
        for role, prepare in self.prepare.items() if batch.tasks else ():
            stacked: Any = torch.stack([prepare(picture) for picture in batch.pictures])
            # left to the queue's own thread, a full /dev/shm would lose the batch without an error
            batch.inputs[role] = stacked.share_memory_() if get_worker_info() else stacked
        return batch if self.keep else replace(batch, pictures=[])

    def _squashed(self, task: Task, image: Image.Image) -> Image.Image:
        if task.augmentation:
            image = augment(image, self.seed, task.photo.name, task.augmentation)
        return squash(image, self.size)


def _one_by_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of one picture, read or not."""
    for batch in batches:
        yield from (Batch([], {}, [], [one]) for one in batch.failed)
        yield from (batch.part(i, i + 1) for i in range(len(batch)))


def _joined(batches: Sequence[Batch], roles: Iterable[str]) -> Batch:
    return Batch(
        [task for batch in batches for task in batch.tasks],
        {role: [one for batch in batches for one in batch.inputs.get(role, ())] for role in roles},
        [picture for batch in batches for picture in batch.pictures],
        [one for batch in batches for one in batch.failed],
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    sys.excepthook = _quiet_where_disconnected


def _quiet_where_disconnected(kind: type[BaseException], *error: Any) -> None:
    """Print no traceback of a lost connection: the main process was stopped while a worker handed it pictures."""
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
    workers = min(loading.num_workers, len(tasks))
    # Several workers make a batch, else all would wait for the first one's; augmentations of a photo come together.
    augmented = max((len(list(own)) for _, own in groupby(tasks, key=lambda task: task.photo)), default=1)
    step = min(MOST_AT_ONCE, max(-(-batch_size // max(workers, 1)), min(augmented, OF_ONE_PHOTO)))
    pictures = _Pictures(tasks, step, size, prepare, loading.exif, seed, keep_pictures)
    ahead = -(-BATCHES_AHEAD * batch_size // (step * workers)) if workers else 0
    loader = DataLoader(
        pictures,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=max(ahead, 2 if step == 1 else 1) if workers else None,  # in steps: they lie in /dev/shm
        pin_memory=pin,
    )
    singles = _one_by_one(loader)
    while batches := list(islice(singles, batch_size)):
        yield _joined(batches, prepare)
