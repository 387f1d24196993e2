"""Writes a miniature of each benchmark, drawn from a seed, in its published layout.

Every photo is planned first (which instances it shows) and then drawn from a generator of its own, so the result does
not depend on how many processes draw. All instances are of the pool "sample", which no training sees.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pekit.files import write_atomically
from pekit.sample.drawing import COLOURS, PATTERNS, Instance, draw_scene, look_alike, random_instance
from pekit.sample.questions import question_files

MYVLM, YOLLAVA = "myvlm/data", "YoLLaVA"
SINGLE, MULTI = "This-is-My-Img/Single-concept", "This-is-My-Img/Multi-concept"

# Concept folders, by the part of the benchmarks that holds them, and the category each belongs to. A colour or pattern
# in a name is what the thing looks like; all else is left to the seed.
CONCEPTS: dict[str, dict[str, str]] = {
    MYVLM: {
        "striped_lamp": "lamp",
        "reading_lamp": "lamp",
        "dotted_mug": "mug",
        "office_mug": "mug",
        "old_teddy_bear": "teddy bear",
        "small_teddy_bear": "teddy bear",
        "red_car": "car",
        "racing_car": "car",
        "beach_kite": "kite",
    },
    YOLLAVA: {
        "polka-mug": "mug",
        "checked-mug": "mug",
        "sunday-hat": "hat",
        "garden-hat": "hat",
        "loud-clock": "clock",
        "kitchen-clock": "clock",
        "zigzag-umbrella": "umbrella",
        "picnic-umbrella": "umbrella",
        "toy-boat": "boat",
    },
    SINGLE: {
        "Noras mug-mug": "mug",
        "Teos mug-mug": "mug",
        "Milas backpack-backpack": "backpack",
        "Ivos backpack-backpack": "backpack",
        "Teos kite-kite": "kite",
        "Lenas kite-kite": "kite",
        "Milas teddy bear-teddy bear": "teddy bear",
        "Ivos shoe-shoe": "shoe",
    },
    MULTI: {
        "Noras teapot-teapot": "teapot",
        "Lenas teapot-teapot": "teapot",
        "Noras hat-hat": "hat",
        "Teos guitar-guitar": "guitar",
        "Teos chair-chair": "chair",
        "Milas chair-chair": "chair",
        "Ivos car-car": "car",
        "Ivos boat-boat": "boat",
    },
}
PAIRS = (
    ("Noras teapot-teapot", "Noras hat-hat"),
    ("Lenas teapot-teapot", "Milas chair-chair"),
    ("Teos guitar-guitar", "Teos chair-chair"),
    ("Ivos car-car", "Ivos boat-boat"),
    ("Noras hat-hat", "Teos guitar-guitar"),
)
REFERENCES, TESTS, NEGATIVES = 5, 4, 2  # photos of a concept: train, test, and each of the other test splits

_SIZES = ((400, 320), (320, 400), (360, 360), (448, 336), (336, 448), (480, 320), (320, 480))
_WORDS = {name: ("colour", name) for name in COLOURS} | {name: ("pattern", name) for name in PATTERNS}
_WORDS["polka"] = ("pattern", "dotted")


@dataclass(frozen=True)
class Shown:
    """A thing to draw.

    Attributes:
        instance: what it looks like.
        concept: folder of the concept it is, or None for a thing without a name.
    """

    instance: Instance
    concept: str | None = None


@dataclass(frozen=True)
class PhotoPlan:
    """A photo to draw: its path in the sample, what it shows from back to front, its size (W, H) in px."""

    path: str
    shown: tuple[Shown, ...]
    size: tuple[int, int]


# --- what there is ------------------------------------------------------------------------------------------------


def draw_concepts(rng: np.random.Generator, folders: dict[str, str]) -> dict[str, Instance]:
    """Draw the instance behind each concept; those of a category are look-alikes that can be told apart.

    Args:
        rng: everything random is drawn from it.
        folders: concept folder -> category.

    Returns:
        Concept folder -> instance, in the same order.
    """
    concepts: dict[str, Instance] = {}
    for folder, category in folders.items():
        wanted = dict(_WORDS[word] for word in folder.lower().replace("_", "-").split("-") if word in _WORDS)
        kin = [instance for instance in concepts.values() if instance.category == category]
        while True:
            instance = look_alike(rng, kin[0]) if kin and not wanted else random_instance(rng, category, "sample")
            fits = all(getattr(instance, attribute) == value for attribute, value in wanted.items())
            if fits and not any(resembles(instance, other) for other in kin):
                break
        concepts[folder] = instance
    return concepts


def resembles(one: Instance, other: Instance) -> bool:
    """Whether two instances are hard to tell apart: alike but for proportions, or for little of the accent colour."""
    if (one.category, one.colour, one.pattern) != (other.category, other.colour, other.pattern):
        return False
    return one.accent == other.accent or one.pattern == "plain"


def imitation(rng: np.random.Generator, concept: Instance) -> Instance:
    """A close imitation: the concept's shape and main colour, another pattern or accent."""
    while True:
        other = look_alike(rng, concept)
        if other.colour == concept.colour and not resembles(other, concept):
            return replace(other, proportions=concept.proportions)


@dataclass(frozen=True)
class Cast:
    """The concepts of one part of the benchmarks, and who may appear beside them."""

    rng: np.random.Generator
    concepts: dict[str, Instance]

    def stranger(self, avoid: Sequence[str] = ()) -> Shown:
        """Some thing that is none of the concepts, and of none of the categories to avoid."""
        while True:
            instance = random_instance(self.rng, pool="sample")
            if instance.category not in avoid and self._is_stranger(instance):
                return Shown(instance)

    def lookalike(self, folder: str) -> Shown:
        """A thing of the concept's category that is none of the concepts."""
        return self._strange(look_alike, folder)

    def fake(self, folder: str) -> Shown:
        """A close imitation of the concept that is none of the concepts."""
        return self._strange(imitation, folder)

    def named(self, folder: str) -> Shown:
        """The concept itself."""
        return Shown(self.concepts[folder], folder)

    def company(self, folders: Sequence[str], most: int) -> list[Shown]:
        """None to some things beside the concepts, look-alikes of the first among them now and then."""
        categories = [self.concepts[folder].category for folder in folders]
        return [
            self.lookalike(folders[0]) if self.rng.random() < 0.35 else self.stranger(categories)
            for _ in range(self.rng.integers(0, most + 1))
        ]

    def photo(self, path: str, shown: list[Shown], mixed: bool = True) -> PhotoPlan:
        """Plan a photo of some size; the order from back to front is random unless told otherwise."""
        order = self.rng.permutation(len(shown)) if mixed else np.arange(len(shown))
        size = _SIZES[int(self.rng.integers(len(_SIZES)))]
        return PhotoPlan(path, tuple(shown[i] for i in order), size)

    def reference(self, path: str, folder: str, crowded: bool) -> PhotoPlan:
        """Plan a reference photo: the concept, in front of something else where crowded."""
        others = [self.stranger([self.concepts[folder].category])] if crowded else []
        return self.photo(path, [*others, self.named(folder)], mixed=False)

    def _strange(self, draw: Any, folder: str) -> Shown:
        while True:
            instance = draw(self.rng, self.concepts[folder])
            if self._is_stranger(instance):
                return Shown(instance)

    def _is_stranger(self, instance: Instance) -> bool:
        return not any(resembles(instance, concept) for concept in self.concepts.values())


# --- layouts ------------------------------------------------------------------------------------------------------


def plan_benchmarks(seed: int) -> tuple[dict[str, dict[str, Instance]], list[PhotoPlan]]:
    """Plan every photo.

    Args:
        seed: everything follows from it.

    Returns:
        The concepts of each part (part -> folder -> instance), and the photos.
    """
    plans: list[PhotoPlan] = []
    concepts = {}
    for number, (part, plan) in enumerate(
        ((MYVLM, _plan_myvlm), (YOLLAVA, _plan_yollava), (SINGLE, _plan_single), (MULTI, _plan_multi))
    ):
        rng = np.random.default_rng([seed, number])
        concepts[part] = draw_concepts(rng, CONCEPTS[part])
        plans += plan(Cast(rng, concepts[part]))
    return concepts, plans


def _plan_myvlm(cast: Cast) -> Iterator[PhotoPlan]:
    """No split: the first photos serve as references. As in the published set, a few suffixes differ."""
    suffixes = {("striped_lamp", 2): "jpeg", ("dotted_mug", 7): "jpeg", ("racing_car", 3): "JPG", ("red_car", 8): "JPG"}
    for folder in cast.concepts:
        for n in range(1, REFERENCES + TESTS + 1):
            path = f"{MYVLM}/{folder}/{folder}_{n}.{suffixes.get((folder, n), 'jpg')}"
            if n <= REFERENCES:
                yield cast.reference(path, folder, crowded=n == 4)
            else:
                yield cast.photo(path, [cast.named(folder), *cast.company([folder], 3)])


def _plan_yollava(cast: Cast) -> Iterator[PhotoPlan]:
    for folder in cast.concepts:
        for n in range(REFERENCES):
            yield cast.reference(f"{YOLLAVA}/train/{folder}/{n}.png", folder, crowded=n == 3)
        for n in range(TESTS):
            yield cast.photo(f"{YOLLAVA}/test/{folder}/{n}.png", [cast.named(folder), *cast.company([folder], 3)])


def _plan_single(cast: Cast) -> Iterator[PhotoPlan]:
    for folder in cast.concepts:
        for n in range(1, REFERENCES + 1):
            yield cast.reference(f"{SINGLE}/train/{folder}/{n}.png", folder, crowded=n == 4)
        for n in range(1, TESTS + 1):
            shown = [cast.named(folder), *cast.company([folder], 3)]
            yield cast.photo(f"{SINGLE}/test/Positive/{folder}/{n}.png", shown)
        category = cast.concepts[folder].category
        for n in range(1, NEGATIVES + 1):
            crowd = [cast.stranger([category]) for _ in range(cast.rng.integers(0, 3))]
            for split, shown in (
                ("Fake", [cast.fake(folder), *crowd[:1]]),
                ("Negative (Hard)", [cast.lookalike(folder), *crowd]),
                ("Negative (Other)", [cast.stranger([category]), *crowd]),
            ):
                yield cast.photo(f"{SINGLE}/test/{split}/{folder}/{n}.png", shown)


def _plan_multi(cast: Cast) -> Iterator[PhotoPlan]:
    for folder in cast.concepts:
        for n in range(1, REFERENCES + 1):
            yield cast.reference(f"{MULTI}/train/{folder}/{n}.png", folder, crowded=n == 4)
    for pair in PAIRS:
        test = "_and_".join(folder.rpartition("-")[0] for folder in pair)
        for n in range(1, TESTS + 1):
            shown = [*map(cast.named, pair), *cast.company(pair, 2)]
            yield cast.photo(f"{MULTI}/test/{test}/{n}.png", shown)


# --- files --------------------------------------------------------------------------------------------------------


def write_benchmarks(out: Path, seed: int = 42, workers: int = 0) -> dict[str, Any]:
    """Write the miniatures, their question files and ``sample.json``, which tells what every photo shows.

    Args:
        out: the data folder; files of the same names are written anew.
        seed: everything follows from it.
        workers: processes that draw; 0 takes one per processor core.

    Returns:
        What ``sample.json`` holds: ``seed``; ``concepts`` by part and folder; ``photos`` by path, each with its
        ``size`` (W, H) in px and its ``objects`` from back to front, their ``box_xyxyn`` around what is visible.
    """
    concepts, plans = plan_benchmarks(seed)
    processes = min(workers or os.cpu_count() or 1, 8)
    draw = partial(_draw_photo, out, seed)
    # Forking a process that has run torch operations can hang in the child, so the workers start afresh.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        objects = list(executor.map(draw, plans, chunksize=8) if processes > 1 else map(draw, plans))
    manifest = {
        "seed": seed,
        "concepts": {
            part: {folder: asdict(instance) for folder, instance in of_part.items()}
            for part, of_part in concepts.items()
        },
        "photos": {
            plan.path: {"size": plan.size, "objects": shown} for plan, shown in zip(plans, objects, strict=True)
        },
    }
    for path, content in question_files(np.random.default_rng([seed, 99]), manifest).items():
        write_atomically(out / path, json.dumps(content, indent=1) + "\n")
    write_atomically(out / "sample.json", json.dumps(manifest) + "\n")
    return manifest


def _draw_photo(out: Path, seed: int, plan: PhotoPlan) -> list[dict[str, Any]]:
    """Draw and save a photo; tells what can be seen in it."""
    rng = np.random.default_rng([seed, zlib.crc32(plan.path.encode())])
    scene = draw_scene(rng, [shown.instance for shown in plan.shown], plan.size)
    image = Image.fromarray(scene.image)
    file = out / plan.path
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() in (".jpg", ".jpeg"):
        image.save(file, quality=88)
    elif rng.random() < 0.08:  # some photos of the published sets have an alpha channel
        image.convert("RGBA").save(file)
    else:  # a palette keeps the noise from filling the disk
        image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file)
    scale = np.array([*plan.size, *plan.size])
    return [
        {
            "concept": shown.concept,
            **asdict(shown.instance),
            "box_xyxyn": [round(float(corner), 5) for corner in drawn.box_xyxy / scale],
        }
        for shown, drawn in zip(plan.shown, scene.objects, strict=True)
    ]
