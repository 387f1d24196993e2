"""How things are drawn: whole shapes a person can tell apart, patterns as worked out, colours true in any light."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS, Instance, draw_instance, draw_scene
from pekit.sample.drawing.shapes import SHAPES, Layers, pattern_mask


def silhouette(category: str, proportions: tuple[float, ...], side: int = 64) -> np.ndarray:
    return np.asarray(draw_instance(Instance(category, "red", "white", "plain", proportions), side))[..., 3] > 127


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_shape_fits_its_square_whatever_the_proportions(category: str) -> None:
    for proportions in product((0.0, 1.0), repeat=3):
        layers = Layers(200)
        SHAPES[category](layers, *proportions)
        drawn = np.max([np.asarray(image) for image in layers.images.values()], axis=0) > 0
        assert not (drawn[0].any() or drawn[-1].any() or drawn[:, 0].any() or drawn[:, -1].any()), proportions
        width, height = drawn.any(0).mean(), drawn.any(1).mean()
        assert max(width, height) > 0.6 and min(width, height) > 0.33


def test_categories_have_silhouettes_of_their_own() -> None:
    shapes = {category: silhouette(category, (0.5, 0.5, 0.5)) for category in CATEGORIES}
    for one, other in combinations(CATEGORIES, 2):
        assert overlap(shapes[one], shapes[other]) < 0.8, f"{one} and {other}"


def test_proportions_bend_a_shape_but_leave_it_the_same_kind() -> None:
    for category in CATEGORIES:
        assert 0.25 < overlap(silhouette(category, (0.0,) * 3), silhouette(category, (1.0,) * 3)) < 0.97, category


def test_an_instance_looks_the_same_at_any_size() -> None:
    for category in CATEGORIES:
        instance = Instance(category, "blue", "yellow", "dotted", (0.4, 0.6, 0.5))
        small = np.asarray(draw_instance(instance, 60)).astype(float)
        large = np.asarray(draw_instance(instance, 180)).astype(float).reshape(60, 3, 60, 3, 4).mean((1, 3))
        assert np.abs(small[..., 3] - large[..., 3]).mean() < 12, category


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_drawn_as_worked_out_pixel_by_pixel(pattern: str) -> None:
    side, cells = 50, 7
    drawn = pattern_mask(pattern, side)
    assert drawn.shape == (side, side) and drawn.dtype == bool
    for j, i in product(range(side), repeat=2):
        x, y = i / side, j / side
        row = int(y * cells)
        expected = {
            "plain": False,
            "striped": int(x * cells * 2) % 2 == 1,
            "checked": (int(x * cells) + row) % 2 == 1,
            "dotted": math.hypot((x * cells + (row % 2) / 2) % 1 - 0.5, (y * cells) % 1 - 0.5) < math.sqrt(0.1),
            "zigzag": int(y * cells * 1.7 + abs((x * cells) % 1 - 0.5) * 1.6 * 1.6) % 2 == 1,
            "ringed": int(math.hypot(x - 0.5, y - 0.5) * cells * 2) % 2 == 1,
        }[pattern]
        assert drawn[j, i] == expected, (i, j)


def test_colours_can_be_told_in_the_light_of_a_scene() -> None:
    palette, names = np.array([*COLOURS.values()]), [*COLOURS]
    told = []
    for seed in range(120):
        colour = names[seed % len(names)]
        instance = Instance("kite", colour, "white" if colour != "white" else "black", "plain")
        scene = draw_scene(np.random.default_rng(seed), [instance], (128, 128))
        seen = np.median(scene.image[scene.objects[0].mask], axis=0)
        told.append(names[np.linalg.norm(palette - seen, axis=1).argmin()] == colour)
    assert np.mean(told) > 0.97


def test_a_scene_has_the_instances_asked_for_in_their_order_or_none() -> None:
    instances = [Instance("mug", "red", "white", "dotted"), Instance("boat", "blue", "yellow", "plain")]
    scene = draw_scene(np.random.default_rng(1), instances, (200, 90))
    assert scene.image.shape == (90, 200, 3) and scene.image.dtype == np.uint8
    assert [shown.instance for shown in scene.objects] == instances
    assert draw_scene(np.random.default_rng(0), []).objects == ()
