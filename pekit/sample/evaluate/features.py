"""How well the sample DINOv2 tells apart instances it was never trained on, at the pipeline's settings."""

from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pekit.features import PatchFeatures, patch_rectangles, pixel_boxes, pool_boxes
from pekit.sample.drawing import Instance, mask_box
from pekit.sample.evaluate import Row
from pekit.sample.train.groups import Group, draw_group
from pekit.sample.train.regions import jitter, random_box

SIDE = 518
THRESHOLD = 0.75
VIEWS = 3
# kind of pair -> wording, bound
PAIRS = {
    "same": ("same instance, two scenes: cosine above 0.75", 0.85),
    "look-alike": ("different instance, same category: cosine above 0.75", 0.10),
    "painted alike": ("other category in the same colours and pattern: cosine above 0.75", 0.02),
    "other": ("other category: cosine above 0.75", 0.01),
    "background": ("background with an object: cosine above 0.75", 0.01),
}


def evaluate(folder: Path, seed: int = 2024, n_groups: int = 16, device: str = "cpu") -> list[Row]:
    """Measures pairs of regions, and recognition among proposals around true boxes.

    Args:
        folder: model folder.
        seed: of the held-out scenes.
        n_groups: groups of easily confused instances, 16 scenes each.
        device: torch device of the model.

    Returns:
        Shares of pairs above the threshold by how the two regions are related; then the recognition of one
        instance of each group from three views of it.
    """
    features = PatchFeatures(str(folder), SIDE, torch.device(device), torch.float32)
    rng = np.random.default_rng(seed)
    drawn = [draw_group((seed, number), "heldout", SIDE, 16, imitated=False) for number in range(n_groups)]
    grids = [patch_grids(features, group) for group in drawn]
    marks = pair_marks(drawn, grids, rng)
    truth, named = recognise(drawn, grids, rng)
    return [
        Row("DINOv2", asked, float(np.mean(marks[kind])), bound, kind == "same", len(marks[kind]))
        for kind, (asked, bound) in PAIRS.items()
    ] + recognition_rows(truth, named, n_groups)


def patch_grids(features: PatchFeatures, group: Group) -> list[torch.Tensor]:
    """Patch grids f32 (37, 37, D) of the scenes of a group."""
    pictures = [Image.fromarray(image) for image in group.images]
    return [features([features.prepare(picture)])[0].cpu() for picture in pictures]


def describe(grid: torch.Tensor, boxes: list[np.ndarray]) -> torch.Tensor:
    """Unit descriptors of filled boxes over one picture, as the pipeline makes them.

    Args:
        grid: f32 (37, 37, D).
        boxes: each (4,), px of the 518 px square.

    Returns:
        f32 (M, D), one row per box that holds a patch.
    """
    means, which = pool_boxes(grid, patch_rectangles(pixel_boxes(np.stack(boxes), SIDE), 14))
    return F.normalize(means[which[which >= 0]], dim=-1)


def relation(one: Instance, two: Instance) -> str:
    """How alike two instances are: a key of `PAIRS`."""
    if one == two:
        return "same"
    if one.category == two.category:
        return "look-alike"
    painted = (one.colour, one.accent, one.pattern) == (two.colour, two.accent, two.pattern)
    return "painted alike" if painted else "other"


def pair_marks(drawn: list[Group], grids: list[list[torch.Tensor]], rng: np.random.Generator) -> dict[str, list[bool]]:
    """Whether the cosine of two loosely boxed regions of different scenes passes the threshold, by kind of pair."""
    shown: list[tuple[tuple[int, int], Instance]] = []
    found, empty = [], []
    for number, (group, grid) in enumerate(zip(drawn, grids, strict=True)):
        for scene, label in enumerate(group.labels):
            for k in np.flatnonzero(np.bincount(label.ravel())[1:]):
                unit = describe(grid[scene], [jitter(mask_box(label == k + 1), 0.1, rng)])
                if len(unit):
                    shown.append(((number, scene), group.instances[k]))
                    found.append(unit)
            bare = [box for box in (random_box(SIDE, rng) for _ in range(8)) if not _cut_out(label, box).any()]
            empty += [describe(grid[scene], bare)] if bare else []
    objects = torch.cat(found)
    passes = (objects @ objects.T > THRESHOLD).tolist()
    marks: dict[str, list[bool]] = {kind: [] for kind in PAIRS}
    for (i, (place, one)), (j, (other_place, two)) in combinations(enumerate(shown), 2):
        if place != other_place:
            marks[relation(one, two)].append(passes[i][j])
    marks["background"] = (torch.cat(empty) @ objects.T > THRESHOLD).flatten().tolist()
    return marks


def recognise(
    drawn: list[Group], grids: list[list[torch.Tensor]], rng: np.random.Generator
) -> tuple[list[int], list[set[int]]]:
    """Recognition of the first instance of each group, from three views of it, in all other scenes.

    Returns:
        For each scene the group whose first instance it shows, -1 for none, and the groups it was found to show.
    """
    views, used = [], set()
    for number, (group, grid) in enumerate(zip(drawn, grids, strict=True)):
        scenes = [scene for scene, label in enumerate(group.labels) if (label == 1).any()][:VIEWS]
        used |= {(number, scene) for scene in scenes}
        boxes = [jitter(mask_box(group.labels[scene] == 1), 0.1, rng) for scene in scenes]
        views.append(torch.cat([describe(grid[scene], [box]) for scene, box in zip(scenes, boxes, strict=True)]))
    truth, named = [], []
    for number, (group, grid) in enumerate(zip(drawn, grids, strict=True)):
        for scene, label in enumerate(group.labels):
            if (number, scene) in used:
                continue
            unit = describe(grid[scene], proposals(label, rng))
            best = torch.stack([(unit @ view.T).amax(dim=1) for view in views])
            score, concept = best.max(dim=0)
            truth.append(number if (label == 1).any() else -1)
            named.append({int(c) for c, s in zip(concept, score, strict=True) if s > THRESHOLD})
    return truth, named


def recognition_rows(truth: list[int], named: list[set[int]], n_concepts: int) -> list[Row]:
    """Recall and precision, mean over concepts, and the share of scenes without any concept that stay unnamed."""
    pairs = list(zip(truth, named, strict=True))
    recalls = [_share(c in names for shown, names in pairs if shown == c) for c in range(n_concepts)]
    precisions = [_share(shown == c for shown, names in pairs if c in names) for c in range(n_concepts)]
    clean = [not names for shown, names in pairs if shown == -1]
    figures: dict[str, tuple[list[float], int]] = {
        "recall, loose true boxes and random boxes": (recalls, len(pairs) - len(clean)),
        "precision, likewise": (precisions, sum(map(len, named))),
        "photos with look-alikes only, no false detection": ([_share(clean)], len(clean)),
    }
    return [Row("DINOv2", asked, float(np.nanmean(marks)), 0.90, True, n) for asked, (marks, n) in figures.items()]


def proposals(label: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Thirty boxes as loose as a detector's, over and beside the objects of a label map (H, W)."""
    tight = [mask_box(label == k) for k in np.flatnonzero(np.bincount(label.ravel())[1:]) + 1]
    boxes = [jitter(box, amount, rng) for box in tight for amount in (0.08, 0.18)]
    for one, two in pairwise(tight):
        boxes.append(np.concatenate([np.minimum(one[:2], two[:2]), np.maximum(one[2:], two[2:])]))
    return boxes + [random_box(len(label), rng) for _ in range(30 - len(boxes))]


def _share(marks: Iterable[bool]) -> float:
    values = list(marks)
    return float(np.mean(values)) if values else float("nan")


def _cut_out(label: np.ndarray, box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = box.astype(int)
    return label[y1:y2, x1:x2]
