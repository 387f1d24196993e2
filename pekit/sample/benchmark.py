"""A drawn miniature of the three benchmarks in their published layouts, with the truth about every photo.

Concepts, names and photos follow from the seed; a photo depends on the seed and its own path alone. Each data set
has pairs of look-alikes among its concepts, and everything shown belongs to the pool "sample", which no training sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from pekit.files import write_atomically
from pekit.names import without_category
from pekit.parallel import usable_cores
from pekit.records import UserError, counted
from pekit.sample.drawing import Instance, Scene, SceneObject, draw_scene, look_alike, random_instance
from pekit.sample.questions import Truth, write_questions
from pekit.start import interrupts_held_back

POOL = "sample"
TRUTH = "sample.json"
SIZES = ((320, 240), (240, 320), (288, 288), (360, 240), (240, 360), (320, 256), (256, 256))  # (W, H) in px
COMPANIONS = (0.3, 0.3, 0.25, 0.15)  # how often a test photo shows 0, 1, 2 or 3 things besides the concept
LEAST_SIZE = {True: 0.42, False: 0.22}  # of a concept in a reference or test photo, against the picture's shorter side
MYVLM_CATEGORIES = ("lamp", "hat", "car", "clock")
YOLLAVA_CATEGORIES = ("mug", "teddy bear", "guitar", "shoe")
THIS_IS_MY_CATEGORIES = ("kite", "backpack", "umbrella", "teapot")
PET_NAMES = ("momo", "kiki", "lulu", "toto", "bibi", "nino", "zuzu", "pepe")
PEOPLE = ("Noras", "Teos", "Idas", "Maliks", "Yukis", "Pias", "Omars", "Lenas")
MULTI_CONCEPTS = 6
PAIRS = ((0, 2), (1, 3), (4, 0), (5, 2))  # indices of the multi-concept part's concepts

Concepts = Mapping[str, Instance]


@dataclass(frozen=True)
class PhotoPlan:
    """A photo to draw.

    Attributes:
        path: relative to the sample's folder, with forward slashes.
        things: what it shows: concept key, or None for a thing without a name, and how the thing looks.
        reference: one thing alone, large and fully visible.
    """

    path: str
    things: tuple[tuple[str | None, Instance], ...]
    reference: bool = False


def write_sample(out: Path, seed: int) -> dict[str, str]:
    """Write the miniature benchmarks, their question files and ``sample.json``, the truth about every photo.

    Args:
        out: folder that receives ``myvlm/``, ``YoLLaVA/``, ``This-is-My-Img/`` and ``sample.json``.
        seed: everything random follows from it.

    Returns:
        Data set -> what was written, in words.

    Raises:
        UserError: another sample, or photos of no sample, would be mixed with these or overwritten.
    """
    this_is_my = personal_concepts(seed)
    multi = dict(list(this_is_my.items())[:MULTI_CONCEPTS])
    sets = {
        "myvlm": (myvlm_concepts(seed), plan_myvlm),
        "yollava": (yollava_concepts(seed), plan_yollava),
        "this-is-my single-concept": (this_is_my, plan_single),
        "this-is-my multi-concept": (multi, plan_multi),
    }
    plans = {name: plan(_rng(seed, name), concepts) for name, (concepts, plan) in sets.items()}
    planned: Truth = {photo.path: [] for photos in plans.values() for photo in photos}
    _refuse_mixing(out, planned.keys())
    # Before any photo: what lies here is the sample's own from now on, also where it is stopped halfway.
    _write_truth(out, planned)
    truth: Truth = {}
    report = {}
    with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
        for name, photos in plans.items():
            with interrupts_held_back():
                drawn = pool.map(_draw_photo, photos, [out] * len(photos), [seed] * len(photos), chunksize=4)
            truth |= {photo.path: things for photo, things in zip(photos, drawn, strict=True)}
            report[name] = f"{counted(len(sets[name][0]), 'concept')}, {counted(len(photos), 'photo')}"
    for name, count in write_questions(out, truth, _rng(seed, "questions")).items():
        report[name] += f", {counted(count, 'question')}"
    _write_truth(out, truth)
    return report


def _write_truth(out: Path, truth: Truth) -> None:
    write_atomically(out / TRUTH, json.dumps(truth, indent=1) + "\n")


def _refuse_mixing(out: Path, planned: Set[str]) -> None:
    file = out / TRUTH
    try:
        others = json.loads(file.read_text(encoding="utf-8")).keys() - planned
    except FileNotFoundError:
        for folder in sorted({out / path.partition("/")[0] for path in planned}):
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    f"{folder} is there, and no {TRUTH} beside it says that it is a sample: name another --out"
                ) from None
        return
    except (ValueError, AttributeError):
        raise UserError(f"{file} is no list of a sample's photos: name another --out, or remove it") from None
    if others:
        raise UserError(f"{out} holds a sample of another --seed or version: name another --out, or remove it")


def _rng(seed: int, of: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(of.encode())])


# --- concepts -----------------------------------------------------------------------------------------------------


def same_looks(one: Instance, other: Instance) -> bool:
    """Whether only proportions, or the little that a plain thing shows of its accent, tell two things apart."""
    same = (one.category, one.colour, one.pattern) == (other.category, other.colour, other.pattern)
    return same and (one.accent == other.accent or one.pattern == "plain")


def _look_alikes(rng: np.random.Generator, category: str) -> tuple[Instance, Instance]:
    """Two things of a category that differ in the body's colour or in the pattern."""
    first = random_instance(rng, category, POOL)
    while True:
        second = look_alike(rng, first)
        if (second.colour, second.pattern) != (first.colour, first.pattern):
            return first, second


def myvlm_concepts(seed: int) -> dict[str, Instance]:
    """Concepts named by what tells each from its look-alike: ``striped_lamp``, ``red_hat``."""
    rng, concepts = _rng(seed, "myvlm concepts"), {}
    for category in MYVLM_CATEGORIES:
        pair = _look_alikes(rng, category)
        for own, other in (pair, pair[::-1]):
            tells_apart = [word for word in (own.pattern, own.colour) if word not in (other.pattern, other.colour)]
            word = next((word for word in tells_apart if word != "plain"), "plain")
            concepts[f"{word}_{category}".replace(" ", "_")] = own
    return concepts


def yollava_concepts(seed: int) -> dict[str, Instance]:
    """Concepts with a pet name, the category last: ``momo-mug``."""
    rng = _rng(seed, "yollava concepts")
    things = [own for category in YOLLAVA_CATEGORIES for own in _look_alikes(rng, category)]
    return {f"{name}-{own.category.replace(' ', '-')}": own for name, own in zip(PET_NAMES, things, strict=True)}


def personal_concepts(seed: int) -> dict[str, Instance]:
    """Concepts of invented people, in the folder spelling of this-is-my: ``Noras kite-kite``."""
    rng = _rng(seed, "this-is-my concepts")
    things = [own for category in THIS_IS_MY_CATEGORIES for own in _look_alikes(rng, category)]
    return {f"{owner} {own.category}-{own.category}": own for owner, own in zip(PEOPLE, things, strict=True)}


# --- what each photo shows ----------------------------------------------------------------------------------------


def plan_myvlm(rng: np.random.Generator, concepts: Concepts) -> list[PhotoPlan]:
    """Six photos a concept in one folder, the first four fit for reference."""
    plans = []
    for i, key in enumerate(concepts):
        for n in range(1, 7):
            suffix = {(0, 5): ".jpeg", (2, 6): ".JPG", (5, 2): ".JPG"}.get((i, n), ".jpg")
            plans.append(_positive(rng, f"myvlm/data/{key}/{key}_{n}{suffix}", [key], concepts, reference=n <= 4))
    return plans


def plan_yollava(rng: np.random.Generator, concepts: Concepts) -> list[PhotoPlan]:
    """Four train and four test photos a concept."""
    return [
        _positive(rng, f"YoLLaVA/{split}/{key}/{n}.png", [key], concepts, reference=split == "train")
        for split in ("train", "test")
        for key in concepts
        for n in range(4)
    ]


def plan_single(rng: np.random.Generator, concepts: Concepts) -> list[PhotoPlan]:
    """Four train photos a concept, and three in each test split."""
    root = "This-is-My-Img/Single-concept"
    plans = _plan_train(rng, root, concepts)
    for key in concepts:
        for n in range(1, 4):
            plans.append(_positive(rng, f"{root}/test/Positive/{key}/{n}.png", [key], concepts))
            for split, decoy in (("Fake", _imitation), ("Negative (Hard)", look_alike), ("Negative (Other)", _other)):
                while _is_concept(shown := decoy(rng, concepts[key]), concepts):
                    pass
                things = [shown, *_company(rng, [], concepts, avoid=concepts[key].category)]
                plans.append(PhotoPlan(f"{root}/test/{split}/{key}/{n}.png", tuple((None, own) for own in things)))
    return plans


def plan_multi(rng: np.random.Generator, concepts: Concepts) -> list[PhotoPlan]:
    """Four train photos a concept, and three photos of each pair, named after both without their categories."""
    root, keys = "This-is-My-Img/Multi-concept", list(concepts)
    plans = _plan_train(rng, root, concepts)
    for pair in PAIRS:
        both = [keys[i] for i in pair]
        folder = "_and_".join(map(without_category, both))
        plans += [_positive(rng, f"{root}/test/{folder}/{n}.png", both, concepts) for n in range(1, 4)]
    return plans


def _plan_train(rng: np.random.Generator, root: str, concepts: Concepts) -> list[PhotoPlan]:
    paths = ((key, f"{root}/train/{key}/{n}.png") for key in concepts for n in range(1, 5))
    return [_positive(rng, path, [key], concepts, reference=True) for key, path in paths]


def _positive(
    rng: np.random.Generator, path: str, keys: Sequence[str], concepts: Concepts, reference: bool = False
) -> PhotoPlan:
    named = [(key, concepts[key]) for key in keys]
    company = [] if reference else _company(rng, [own for _, own in named], concepts)
    return PhotoPlan(path, (*named, *((None, other) for other in company)), reference)


def _company(
    rng: np.random.Generator, shown: Sequence[Instance], concepts: Concepts, avoid: str | None = None
) -> list[Instance]:
    """Things without a name, look-alikes of those shown among them, none a concept or of the category to avoid."""
    company: list[Instance] = []
    for _ in range(int(rng.choice(len(COMPANIONS), p=COMPANIONS)) // max(1, len(shown))):
        while True:
            alike = shown and rng.random() < 0.4
            other = look_alike(rng, shown[0]) if alike else random_instance(rng, pool=POOL)
            if other.category != avoid and not _is_concept(other, concepts):
                break
        company.append(other)
    return company


def _is_concept(thing: Instance, concepts: Concepts) -> bool:
    return any(same_looks(thing, concept) for concept in concepts.values())


def _imitation(rng: np.random.Generator, concept: Instance) -> Instance:
    """A close look-alike: in the body's colour where the pool has one, with the accent or the pattern if it can be."""

    def closeness(other: Instance) -> tuple[bool, int]:
        return other.colour == concept.colour, (other.accent == concept.accent) + (other.pattern == concept.pattern)

    return max((look_alike(rng, concept) for _ in range(16)), key=closeness)


def _other(rng: np.random.Generator, concept: Instance) -> Instance:
    """A thing of another category."""
    while (other := random_instance(rng, pool=POOL)).category == concept.category:
        pass
    return other


# --- photos -------------------------------------------------------------------------------------------------------


def _draw_photo(plan: PhotoPlan, out: Path, seed: int) -> list[dict]:
    """Draw and write a photo; returns what it shows, from back to front, boxes in [0, 1]."""
    rng = _rng(seed, plan.path)
    width, height = SIZES[rng.integers(len(SIZES))]
    things = [plan.things[i] for i in rng.permutation(len(plan.things))]
    while True:
        scene = draw_scene(rng, [own for _, own in things], (width, height))
        named = [shown for (key, _), shown in zip(things, scene.objects, strict=True) if key]
        if all(_size_in(scene, shown) >= LEAST_SIZE[plan.reference] for shown in named) and (
            not plan.reference or _inside(scene, named[0])
        ):
            break
    _save(Image.fromarray(scene.image), out / plan.path)
    return [
        {
            "concept": key,
            **own.looks,
            "box_xyxyn": [round(float(value), 5) for value in shown.box_xyxy / (width, height, width, height)],
        }
        for (key, own), shown in zip(things, scene.objects, strict=True)
    ]


def _size_in(scene: Scene, shown: SceneObject) -> float:
    """The longer side of a thing's box as a share of the picture's shorter one."""
    x0, y0, x1, y1 = shown.box_xyxy
    return float(max(x1 - x0, y1 - y0) / min(scene.image.shape[:2]))


def _inside(scene: Scene, shown: SceneObject) -> bool:
    """Whether nothing of a thing is beyond the picture's edge."""
    height, width = scene.image.shape[:2]
    x0, y0, x1, y1 = shown.box_xyxy
    return bool(x0 > 0 and y0 > 0 and x1 < width and y1 < height)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":  # 256 colours look the same and take a fifth of the space
        image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, compress_level=4)
    else:
        image.save(path, format="JPEG", quality=90)
