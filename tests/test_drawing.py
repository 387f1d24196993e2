"""Drawn things and scenes: determinism, true masks and boxes, disjoint pools, look-alikes that differ, legibility."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
from conftest import script_environment
from PIL import Image

from pekit.sample import drawing
from pekit.sample.drawing import (
    CATEGORIES,
    COLOURS,
    PATTERNS,
    POOLS,
    Instance,
    draw_instance,
    draw_scene,
    look_alike,
    random_instance,
    random_scene,
)

DIGEST = """
import hashlib, numpy as np
from pekit.sample.drawing import random_scene
rng, digest = np.random.default_rng(5), hashlib.sha256()
for _ in range(6):
    scene = random_scene(rng, size=(96, 80))
    digest.update(scene.image.tobytes())
    for shown in scene.objects:
        digest.update(repr(shown.instance).encode() + shown.mask.tobytes() + shown.box_xyxy.tobytes())
print(digest.hexdigest())
"""


# --- determinism ---------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_in_any_process() -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            capture_output=True,
            text=True,
            check=True,
            env=script_environment(PYTHONHASHSEED=hash_seed),
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64


def test_other_seed_gives_another_scene() -> None:
    first, second = (random_scene(np.random.default_rng(seed), 1, (64, 64)) for seed in (1, 2))
    assert not np.array_equal(first.image, second.image)


# --- masks and boxes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(72, 72), (96, 60)])
def test_box_is_the_tight_box_of_the_mask(count: int, size: tuple[int, int]) -> None:
    scene = random_scene(np.random.default_rng(count), count, size)
    assert scene.image.shape == (size[1], size[0], 3)
    assert scene.image.dtype == np.uint8
    assert len(scene.objects) == count
    for shown in scene.objects:
        assert shown.mask.shape == scene.image.shape[:2]
        assert shown.mask.dtype == bool
        left, top, right, bottom = size[0], size[1], -1, -1
        for y in range(size[1]):
            for x in range(size[0]):
                if shown.mask[y, x]:
                    left, top, right, bottom = min(left, x), min(top, y), max(right, x), max(bottom, y)
        assert shown.box_xyxy.tolist() == [left, top, right + 1, bottom + 1]


def test_no_pixel_belongs_to_two_objects() -> None:
    scene = random_scene(np.random.default_rng(3), 5, (120, 120))
    assert max(sum(int(shown.mask[y, x]) for shown in scene.objects) for y in range(120) for x in range(120)) == 1


class _Recorder:
    """Stands in for the placing of things and keeps what was placed."""

    def __init__(self) -> None:
        self.place = drawing._place
        self.placed: list[tuple[Image.Image, np.ndarray, float]] = []

    def __call__(self, *args: object, **options: object) -> tuple[Image.Image, np.ndarray, float]:
        self.placed.append(self.place(*args, **options))  # type: ignore[arg-type]
        return self.placed[-1]


def _painted_in_order(sprites: list[Image.Image]) -> np.ndarray:
    """Which sprite is on top at each pixel, by painting them one after the other: 0 none, 1 the first …"""
    height, width = sprites[0].size[::-1]
    on_top = np.zeros((height, width), dtype=int)
    for number, sprite in enumerate(sprites, start=1):
        for y, row in enumerate(np.asarray(sprite)[..., 3].tolist()):
            for x, alpha in enumerate(row):
                if alpha > 127:
                    on_top[y, x] = number
    return on_top


def test_masks_are_what_the_things_in_front_leave_and_most_of_each_thing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    occluded = 0
    for seed in range(12):
        recorder = _Recorder()
        monkeypatch.setattr(drawing, "_place", recorder)
        count = 2 + seed % 4
        scene = random_scene(np.random.default_rng(seed), count, (90, 80))
        sprites = [sprite for sprite, _, _ in recorder.placed[-count:]]
        on_top = _painted_in_order(sprites)
        for number, (shown, sprite) in enumerate(zip(scene.objects, sprites, strict=True), start=1):
            assert np.array_equal(shown.mask, on_top == number)
            alone = int((_painted_in_order([sprite]) == 1).sum())
            visible = int((on_top == number).sum())
            assert visible >= 0.6 * alone
            occluded += visible < alone
        monkeypatch.undo()
    assert occluded >= 5  # else the share was never put to the test


def test_things_past_the_edge_keep_most_of_themselves_inside() -> None:
    """A thing cut off by the edge shows 60 % of what the same thing shows where nothing cuts it off."""
    rng = np.random.default_rng(0)
    instance = Instance("clock", "red", "white", "plain")
    ratios = []
    for _ in range(60):
        (shown,) = draw_scene(rng, [instance], (90, 90)).objects
        x0, y0, x1, y1 = shown.box_xyxy
        if x0 == 0 or y0 == 0 or x1 == 90 or y1 == 90:
            # a clock is about as wide as high: its uncut area follows from the box's longer side
            ratios.append(shown.mask.sum() / max(x1 - x0, y1 - y0) ** 2)
    whole = (np.asarray(draw_instance(instance, 90))[..., 3] > 127).sum()
    box = Image.fromarray(np.asarray(draw_instance(instance, 90))[..., 3] > 127).getbbox()
    assert box is not None
    full = whole / max(box[2] - box[0], box[3] - box[1]) ** 2
    assert ratios
    assert min(ratios) >= 0.6 * 0.6 * full  # the longer side may be cut as well


def test_mask_marks_where_the_picture_changes() -> None:
    """A thing's own colour lies under its mask, seen through the light of the scene."""
    instance = Instance("hat", "cyan", "black", "plain")
    scene = draw_scene(np.random.default_rng(2), [instance], (160, 160))
    (shown,) = scene.objects
    distance = np.linalg.norm(scene.image.astype(float) - COLOURS["cyan"], axis=-1)
    assert np.median(distance[shown.mask]) < 60 < np.median(distance[~shown.mask])


# --- pools ---------------------------------------------------------------------------------------------------------


def _every_look() -> list[Instance]:
    return [Instance(*look) for look in itertools.product(CATEGORIES, COLOURS, COLOURS, PATTERNS)]


def test_pool_follows_from_looks_alone() -> None:
    for instance in _every_look()[::97]:
        bent = Instance(instance.category, instance.colour, instance.accent, instance.pattern, (0.1, 0.9, 0.2))
        assert bent.pool == instance.pool
        look = "/".join([instance.category, instance.colour, instance.accent, instance.pattern])
        eighth = int(hashlib.sha256(look.encode()).hexdigest()[:2], 16) % 8
        assert instance.pool == {6: "heldout", 7: "sample"}.get(eighth, "train")


@pytest.mark.parametrize("pool", POOLS)
def test_scenes_keep_to_their_pool(pool: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(8):
        assert {shown.instance.pool for shown in random_scene(rng, size=(48, 48), pool=pool).objects} == {pool}


def test_every_pool_has_enough_of_every_category() -> None:
    for category in CATEGORIES:
        pools = [instance.pool for instance in _every_look() if instance.category == category]
        assert min(pools.count(pool) for pool in POOLS) >= 60


# --- look-alikes ---------------------------------------------------------------------------------------------------


def test_look_alikes_share_category_and_pool_and_differ_visibly() -> None:
    rng = np.random.default_rng(6)
    shared = {"colour": 0, "pattern": 0, "both": 0}
    for i in range(150):
        own = random_instance(rng, pool=POOLS[i % 3])
        other = look_alike(rng, own)
        assert (other.category, other.pool) == (own.category, own.pool)
        differ = {name for name in ("colour", "accent", "pattern") if getattr(other, name) != getattr(own, name)}
        assert differ
        if differ == {"accent"}:
            assert own.pattern != "plain"
        shared["colour"] += "colour" not in differ
        shared["pattern"] += "pattern" not in differ
        shared["both"] += differ == {"accent"}
    assert shared["colour"] > 30
    assert shared["pattern"] > 30
    assert shared["both"] > 10


def test_look_alikes_look_different() -> None:
    """Drawn alone with the same proportions, a fair part of the thing has another colour."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        own = random_instance(rng)
        other = look_alike(rng, own)
        first, second = (
            np.asarray(draw_instance(Instance(i.category, i.colour, i.accent, i.pattern), 64), dtype=float)
            for i in (own, other)
        )
        thing = first[..., 3] > 127
        changed = np.linalg.norm(first[..., :3] - second[..., :3], axis=-1) > 50
        assert (changed & thing).sum() >= 0.1 * thing.sum(), (own, other)


# --- legibility ----------------------------------------------------------------------------------------------------


def _nearest_colours(pixels: np.ndarray) -> list[str]:
    names = list(COLOURS)
    table = np.array([COLOURS[name] for name in names], dtype=float)
    distance = np.linalg.norm(pixels.astype(float)[:, None] - table[None], axis=-1)
    return [names[i] for i in distance.argmin(1)]


def test_named_colours_are_told_apart() -> None:
    for one, other in itertools.combinations(COLOURS, 2):
        assert np.linalg.norm(np.subtract(COLOURS[one], COLOURS[other])) >= 60, (one, other)


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_shows_its_colours(category: str) -> None:
    """Large enough to be seen, and the pixels most often read as body colour, accent or a dark detail."""
    for colour, accent in (("red", "white"), ("cyan", "brown")):
        pixels = np.asarray(draw_instance(Instance(category, colour, accent, "plain"), 96))
        thing = pixels[pixels[..., 3] > 250][:, :3]
        assert len(thing) >= 0.12 * 96 * 96
        read = _nearest_colours(thing)
        assert read.count(colour) >= 0.25 * len(read)
        assert read.count(accent) > 0  # a plain thing may show little of it
        assert read.count(colour) + read.count(accent) + read.count("black") >= 0.7 * len(read)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern != "plain"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_pattern_shows_on_the_body(category: str, pattern: str) -> None:
    """Against the plain thing, a good part of the body takes the accent's colour, and a good part keeps its own."""
    plain, patterned = (
        np.asarray(draw_instance(Instance(category, "blue", "yellow", name), 96)) for name in ("plain", pattern)
    )
    opaque = plain[..., 3] > 250
    body = opaque & (np.linalg.norm(plain[..., :3].astype(float) - COLOURS["blue"], axis=-1) < 40)
    taken = body & (np.linalg.norm(patterned[..., :3].astype(float) - COLOURS["yellow"], axis=-1) < 60)
    assert 0.1 * body.sum() <= taken.sum() <= 0.7 * body.sum()


def test_patterns_differ_from_each_other() -> None:
    for category in CATEGORIES:
        drawn = {
            name: np.asarray(draw_instance(Instance(category, "blue", "yellow", name), 72))[..., :3].astype(float)
            for name in PATTERNS
        }
        thing = np.asarray(draw_instance(Instance(category, "blue", "yellow", "plain"), 72))[..., 3] > 250
        for one, other in itertools.combinations(PATTERNS, 2):
            changed = (np.linalg.norm(drawn[one] - drawn[other], axis=-1) > 100) & thing
            assert changed.sum() >= 0.05 * thing.sum(), (category, one, other)


def test_accent_contrasts_with_the_body() -> None:
    rng = np.random.default_rng(8)
    for _ in range(100):
        instance = random_instance(rng)
        body, accent = COLOURS[instance.colour], COLOURS[instance.accent]
        assert sum((b - a) ** 2 for b, a in zip(body, accent, strict=True)) >= 120**2


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_white_thing_has_a_dark_rim(category: str) -> None:
    pixels = np.asarray(draw_instance(Instance(category, "white", "yellow", "plain"), 160)).astype(float)
    opaque = pixels[..., 3] > 250
    beside_nothing = opaque & (
        (np.roll(pixels[..., 3], 2, 0) < 5)
        | (np.roll(pixels[..., 3], -2, 0) < 5)
        | (np.roll(pixels[..., 3], 2, 1) < 5)
        | (np.roll(pixels[..., 3], -2, 1) < 5)
    )
    assert np.median(pixels[beside_nothing][:, :3].mean(-1)) < 0.75 * 245
