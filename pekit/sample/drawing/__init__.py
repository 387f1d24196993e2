"""Drawn scenes of everyday things: any number of random instances from a seed, with exact masks and boxes.

An instance is one particular thing ("the red dotted mug"); a scene shows instances on a background with clutter,
light, rotation and occlusion. Everything follows from the generator given, and from sizes relative to the picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from pekit.sample.drawing.backgrounds import background, clutter, light
from pekit.sample.drawing.shapes import CATEGORIES, COLOURS, DARK, PATTERNS, SHAPES, Layers, pattern_mask

__all__ = [
    "CATEGORIES", "COLOURS", "PATTERNS", "POOLS", "Instance", "Scene", "SceneObject",
    "draw_instance", "draw_scene", "look_alike", "mask_box", "random_instance", "random_scene",
]  # fmt: skip

POOLS = ("train", "heldout", "sample")
LEAST_VISIBLE = 0.6
LEAST_CONTRAST = 120.0


@dataclass(frozen=True)
class Instance:
    """One particular thing.

    Attributes:
        category: one of ``CATEGORIES``.
        colour: name of the body's colour.
        accent: name of the colour of the pattern and of the smaller parts.
        pattern: one of ``PATTERNS``.
        proportions: three numbers in [0, 1] that bend the shape.
    """

    category: str
    colour: str
    accent: str
    pattern: str
    proportions: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def looks(self) -> dict[str, str]:
        """What a person says of it: category, colour, accent and pattern."""
        return {"category": self.category, "colour": self.colour, "accent": self.accent, "pattern": self.pattern}

    @property
    def pool(self) -> str:
        """Who may use it: training, held-out evaluation, or the sample benchmark; one of ``POOLS``.

        It follows from category, colours and pattern alone, so instances of different pools never look the same.
        """
        key = "/".join(self.looks.values())
        return _POOL_OF[hashlib.sha256(key.encode()).digest()[0] % 8]


_POOL_OF = ("train",) * 6 + ("heldout", "sample")
_CONTRASTING = {
    name: tuple(
        other
        for other, rgb in COLOURS.items()
        if other != name and np.linalg.norm(np.subtract(rgb, COLOURS[name])) >= LEAST_CONTRAST
    )
    for name in COLOURS
}


@dataclass(frozen=True)
class SceneObject:
    """An instance in a scene.

    Attributes:
        instance: what it is.
        mask: bool (H, W), its visible pixels.
        box_xyxy: f32 (4,), px, tight box of the mask, corners past the last pixel.
    """

    instance: Instance
    mask: np.ndarray
    box_xyxy: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it: image uint8 (H, W, 3) RGB, objects from back to front."""

    image: np.ndarray
    objects: tuple[SceneObject, ...]


def random_instance(rng: np.random.Generator, category: str | None = None, pool: str = "train") -> Instance:
    """Draw an instance of a pool, of any category or of the one given."""
    category = category or str(rng.choice(CATEGORIES))
    while True:
        instance = _paint(rng, Instance(category, "red", "white", "plain", _proportions(rng)))
        if instance.pool == pool:
            return instance


def _proportions(rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in rng.random(3))


def _paint(rng: np.random.Generator, instance: Instance) -> Instance:
    colour = str(rng.choice(tuple(COLOURS)))
    accent, pattern = str(rng.choice(_CONTRASTING[colour])), str(rng.choice(PATTERNS))
    return replace(instance, colour=colour, accent=accent, pattern=pattern)


def look_alike(rng: np.random.Generator, instance: Instance) -> Instance:
    """Draw another instance of the same category and pool that differs in some, rarely all, of its looks.

    It shares the body's colour, or the pattern, or both with a different accent; proportions are drawn anew.
    """
    while True:
        other = _paint(rng, replace(instance, proportions=_proportions(rng)))
        kind = rng.integers(4)
        if kind == 0:
            other = replace(other, colour=instance.colour)
        elif kind == 1:
            other = replace(other, pattern=instance.pattern)
        elif kind == 2:
            other = replace(other, colour=instance.colour, pattern=instance.pattern)
        legible = other.accent in _CONTRASTING[other.colour]
        differs = (other.colour, other.pattern) != (instance.colour, instance.pattern) or (
            other.accent != instance.accent and other.pattern != "plain"  # a plain thing shows too little of its accent
        )
        if legible and differs and other.pool == instance.pool:
            return other


def draw_instance(instance: Instance, side: int) -> Image.Image:
    """Draw an instance upright and alone: RGBA, side x side, antialiased."""
    fine = side * 2
    layers = Layers(fine)
    SHAPES[instance.category](layers, *instance.proportions)
    body, accent, detail = (np.asarray(layers.images[name]) > 127 for name in ("body", "accent", "detail"))
    covered = body | accent | detail
    shade = np.linspace(1.06, 0.9, fine)[:, None]  # light from the left gives the body some volume
    pixels = np.where(
        pattern_mask(instance.pattern, fine),
        _words(shade * COLOURS[instance.accent]),
        _words(shade * COLOURS[instance.colour]),
    )
    pixels[accent] = _words(COLOURS[instance.accent])
    pixels[detail] = _words(DARK)
    pixels[~covered] = 0
    channels = pixels.view(np.uint8).reshape(fine, fine, 4)
    channels[_rim(covered), :3] //= 2
    return Image.fromarray(channels).resize((side, side), Image.Resampling.BOX)


def _words(colours: ArrayLike) -> np.ndarray:
    """Opaque RGBA pixels as one word each, which numpy moves faster than four bytes: (..., 3) -> (...)."""
    rgb = np.clip(colours, 0, 255).astype(np.uint8)
    alpha = np.full((*rgb.shape[:-1], 1), 255, dtype=np.uint8)
    return np.concatenate([rgb, alpha], axis=-1).view(np.uint32)[..., 0]


def _rim(covered: np.ndarray) -> np.ndarray:
    """The outermost pixels of a thing, drawn darker so that a white thing shows on a white wall."""
    inner = covered.copy()
    for _ in range(max(1, len(covered) // 110)):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return covered & ~inner


def draw_scene(rng: np.random.Generator, instances: Sequence[Instance], size: tuple[int, int] = (192, 192)) -> Scene:
    """Draw instances into one picture.

    Args:
        rng: everything random is drawn from it.
        instances: from back to front.
        size: (W, H) in px.

    Returns:
        The scene; of each object at least 60 % is visible.
    """
    image = background(rng, size)
    clutter(rng, image)
    for _ in range(40):
        placed = [_place(rng, instance, size, len(instances)) for instance in instances]
        visible = _visible([alpha for _, alpha, _ in placed])
        shares = [mask.sum() / max(whole, 1) for mask, (_, _, whole) in zip(visible, placed, strict=True)]
        if not placed or min(shares) >= LEAST_VISIBLE:
            break
    else:  # crowded: side by side instead
        placed = [_place(rng, instance, size, len(instances), slot=i) for i, instance in enumerate(instances)]
        visible = _visible([alpha for _, alpha, _ in placed])
    for sprite, _, _ in placed:
        image.paste(sprite, (0, 0), sprite)
    objects = tuple(
        SceneObject(instance, mask, mask_box(mask)) for instance, mask in zip(instances, visible, strict=True)
    )
    return Scene(light(rng, np.asarray(image)), objects)


def _place(
    rng: np.random.Generator, instance: Instance, size: tuple[int, int], count: int, slot: int | None = None
) -> tuple[Image.Image, np.ndarray, float]:
    """An instance somewhere on an empty picture: RGBA (W, H), its mask bool (H, W), its area were nothing cut off."""
    width, height = size
    largest = {1: 0.68, 2: 0.52, 3: 0.44}.get(count, 0.36)
    side = int(min(size) * rng.uniform(0.32 if count == 1 else 0.24 if count < 4 else 0.2, largest))
    if slot is not None:
        side = int(min(size) / np.ceil(np.sqrt(count)) * 0.8)
    sprite = draw_instance(instance, side)
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.rotate(float(np.clip(rng.normal(0, 12), -30, 30)), Image.Resampling.BILINEAR, expand=True)
    sprite = sprite.crop(sprite.getbbox())
    overhang = 0.25 if slot is None and rng.random() < 0.15 else 0.0
    w, h = sprite.size
    if slot is None:
        x = rng.uniform(-overhang * w, width - w * (1 - overhang))
        y = rng.uniform(-overhang * h, height - h * (1 - overhang))
    else:
        columns = int(np.ceil(np.sqrt(count)))
        x = (slot % columns + 0.5) * width / columns - w / 2
        y = (slot // columns + 0.5) * height / columns - h / 2
    canvas = Image.new("RGBA", size)
    canvas.paste(sprite, (round(x), round(y)))
    whole = float((np.asarray(sprite)[..., 3] > 127).sum())
    return canvas, np.asarray(canvas)[..., 3] > 127, whole


def _visible(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What later masks leave of earlier ones."""
    if not masks:
        return []
    left, covered = [], np.zeros_like(masks[0])
    for mask in reversed(masks):
        left.append(mask & ~covered)
        covered = covered | mask
    return left[::-1]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Tight box of a mask that holds a pixel: bool (H, W) -> f32 (4,) xyxy, corners past the last pixel."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def random_scene(
    rng: np.random.Generator, n_objects: int | None = None, size: tuple[int, int] = (192, 192), pool: str = "train"
) -> Scene:
    """Draw a scene of random instances.

    Args:
        rng: everything random is drawn from it.
        n_objects: how many; None for 1 to 5.
        size: (W, H) in px.
        pool: whose instances.
    """
    count = int(rng.integers(1, 6)) if n_objects is None else n_objects
    instances: list[Instance] = []
    for _ in range(count):
        if instances and rng.random() < 0.3:
            instances.append(look_alike(rng, instances[int(rng.integers(len(instances)))]))
        else:
            instances.append(random_instance(rng, pool=pool))
    return draw_scene(rng, instances, size)
