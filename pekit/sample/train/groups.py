"""Groups of scenes that show the same few, easily confused instances: what features of instances are learned from."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pekit.sample.drawing import PATTERNS, Instance, draw_scene, look_alike, random_instance
from pekit.sample.train.scenes import SceneBank


@dataclass(frozen=True)
class Group:
    """Scenes that show the same few instances again and again.

    Attributes:
        images: uint8 (S, H, W, 3), squashed to squares.
        labels: uint8 (S, H, W); 0 where no object is visible, else 1 + the object's number in the group.
        instances: what the numbers stand for.
    """

    images: np.ndarray
    labels: np.ndarray
    instances: tuple[Instance, ...]


def draw_group(
    seed: tuple[int, int], pool: str = "train", side: int = 320, n_scenes: int = 8, imitated: bool = True
) -> Group:
    """Draws a few instances that are easily confused, several of them in each of a handful of scenes.

    Args:
        seed: seed of the run and number of the group.
        pool: which instances may appear, one of `drawing.POOLS`.
        side: side of the squares, in px.
        n_scenes: how many scenes show the instances.
        imitated: whether two close imitations, and a thing painted like one of them, are among the instances, in place
            of one that is less alike and of two unrelated ones.
    """
    rng = np.random.default_rng(seed)
    first = random_instance(rng, pool=pool)
    twin = look_alike(rng, first)
    painted = repaint(rng, first)
    other = imitate(rng, first) if imitated else look_alike(rng, first)
    instances = [first, twin, other, painted, repaint(rng, twin), look_alike(rng, painted)]
    if imitated:
        instances += [repaint(rng, other), imitate(rng, painted)]
    else:
        instances += [random_instance(rng, pool=pool) for _ in range(2)]
    images, labels = [], []
    for _ in range(n_scenes):
        shown = rng.choice(len(instances), size=rng.integers(1, 5), replace=False)
        long = int(rng.choice([192, 256, 352]))
        size = [(long, long), (long, long * 3 // 4), (long * 3 // 4, long)][rng.integers(3)]
        scene = draw_scene(rng, [instances[k] for k in shown], size=size)
        label = np.zeros(scene.image.shape[:2], np.uint8)
        for thing in scene.objects:
            label[thing.mask] = 1 + instances.index(thing.instance)
        images.append(np.asarray(Image.fromarray(scene.image).resize((side, side), Image.Resampling.BILINEAR)))
        labels.append(np.asarray(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST)))
    return Group(np.stack(images), np.stack(labels), tuple(instances))


def pair_of(bank: SceneBank, number: int) -> Group:
    """Scenes 2k and 2k + 1 of a bank, which show the same main instance, as a group.

    Args:
        bank: its scenes are square.
        number: k.
    """
    scenes = [bank[2 * number], bank[2 * number + 1]]
    first, second = scenes[0].instances, scenes[1].instances[1:]
    shift = np.arange(256, dtype=np.uint8)
    shift[2 : 2 + len(second)] += len(first) - 1  # their main instance is the same; the others are further ones
    labels = np.stack([scenes[0].labels, shift[scenes[1].labels]])
    return Group(np.stack([scene.image for scene in scenes]), labels, (*first, *second))


def imitate(rng: np.random.Generator, instance: Instance) -> Instance:
    """A look-alike of the same proportions and two colours, which another pattern or their exchange tells apart."""
    colours = (instance.colour, instance.accent)
    alike = [
        replace(instance, colour=colour, accent=accent, pattern=pattern)
        for colour, accent in (colours, colours[::-1])
        for pattern in PATTERNS
    ]
    alike = [other for other in alike if other != instance and other.pool == instance.pool]
    return alike[rng.integers(len(alike))] if alike else look_alike(rng, instance)


def repaint(rng: np.random.Generator, instance: Instance) -> Instance:
    """An instance of the same pool and another category in the same colours and pattern."""
    for _ in range(64):
        other = random_instance(rng, pool=instance.pool)
        painted = replace(other, colour=instance.colour, accent=instance.accent, pattern=instance.pattern)
        if painted.category != instance.category and painted.pool == instance.pool:
            return painted
    return random_instance(rng, pool=instance.pool)
