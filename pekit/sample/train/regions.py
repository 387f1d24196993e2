"""Regions over a training scene, drawn as imprecisely as a detector proposes them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pekit.features import patch_rectangles, pixel_boxes, rectangle_members
from pekit.sample.drawing import mask_box

PATCH = 14


@dataclass(frozen=True)
class Region:
    """Some patches of a scene and what they show.

    Attributes:
        patches: bool (G, G), the patches that belong to the region.
        instance: number of the instance it stands for, -1 when it stands for none.
        holds: numbers of all instances of which it holds a good part: naming one of them is no mistake.
    """

    patches: np.ndarray
    instance: int
    holds: tuple[int, ...]


def scene_regions(label: np.ndarray, whole: np.ndarray, rng: np.random.Generator) -> Iterator[Region]:
    """Regions over one scene: objects in loose boxes, parts, two objects in one box, background.

    Args:
        label: uint8 (H, W) with H = W = 14 G, 0 or 1 + the number of the instance visible at that pixel.
        whole: bool (256,), by label: whether enough of the instance is in the picture to stand for it.
        rng: draws them.
    """
    size = len(label)
    cells = label[::PATCH, ::PATCH]
    total = np.bincount(cells.ravel(), minlength=256)
    boxes = {int(k): mask_box(label == k) for k in np.flatnonzero(np.bincount(label.ravel())[1:]) + 1}

    def region(patches: np.ndarray, instance: int = -1) -> Region:
        inside = np.bincount(cells[patches], minlength=256)
        good = (inside > 0.15 * total) | (inside > 0.1 * patches.sum())
        return Region(patches, instance, tuple(int(k) - 1 for k in boxes if inside[k] and good[k]))

    for k, box in boxes.items():
        if not whole[k]:
            continue
        for _ in range(2):
            yield region(box_patches(jitter(box, 0.18, rng), size), k - 1)
        if rng.random() < 0.3:
            yield region(cells == k, k - 1)
        yield region(box_patches(half_box(box, rng), size))
    if len(boxes) > 1:
        one, two = (boxes[int(k)] for k in rng.choice(list(boxes), 2, replace=False))
        both = np.concatenate([np.minimum(one[:2], two[:2]), np.maximum(one[2:], two[2:])])
        yield region(box_patches(jitter(both, 0.05, rng), size))
    for _ in range(4):
        yield region(box_patches(random_box(size, rng), size))


def jitter(box: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Move each side of a box (4,) by up to `amount` of its width or height."""
    width, height = box[2] - box[0], box[3] - box[1]
    return box + rng.uniform(-amount, amount, 4) * [width, height, width, height]


def half_box(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A third to three fifths of a box (4,), cut off at one of its four sides."""
    part = box.astype(np.float64)
    side = int(rng.integers(4))
    opposite = (side + 2) % 4
    part[side] = box[opposite] + rng.uniform(0.33, 0.6) * (box[side] - box[opposite])
    return part


def random_box(size: int, rng: np.random.Generator) -> np.ndarray:
    """A box (4,) anywhere in a square of `size` px, an eighth to seven tenths of it wide and high."""
    width, height = size * np.exp(rng.uniform(np.log(0.12), np.log(0.7), 2))
    x, y = rng.uniform(0, size - width), rng.uniform(0, size - height)
    return np.array([x, y, x + width, y + height])


def box_patches(box: np.ndarray, size: int) -> np.ndarray:
    """The patches whose first pixel lies in the filled box, its corners truncated and clamped: bool (G, G)."""
    return rectangle_members(patch_rectangles(pixel_boxes(box[None], size), PATCH), size // PATCH)[0]
