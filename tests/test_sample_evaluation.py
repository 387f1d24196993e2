"""The quality table of the sample checkpoints: its figures, worked out by hand for models that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pekit.records import Regions
from pekit.sample.drawing import Instance, Scene, draw_scene, random_scene
from pekit.sample.evaluate import Row, features, grounding, masks, recognition
from pekit.sample.evaluate.__main__ import main
from pekit.sample.train.groups import Group

SIDE = 518


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bound", "at_least", "met", "words"),
    [
        (0.9, 0.9, True, True, "at least 0.90"),
        (0.89, 0.9, True, False, "at least 0.90"),
        (0.1, 0.1, False, True, "at most 0.10"),
        (0.11, 0.1, False, False, "at most 0.10"),
        (0.3, None, True, True, "–"),
    ],
)
def test_a_figure_keeps_its_bound(value: float, bound: float | None, at_least: bool, met: bool, words: str) -> None:
    row = Row("SAM", "something", value, bound, at_least, 7)
    assert (row.met, row.bound_text) == (met, words)


@pytest.mark.parametrize(("values", "code"), [((0.95, 0.9), 0), ((0.2, 0.95), 1), ((0.95, 0.2), 1)])
def test_one_figure_that_is_missed_makes_the_exit_code(
    values: tuple[float, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("SAM", f"figure {n}", value, 0.9, True, 5) for n, value in enumerate(values)]
    monkeypatch.setattr(masks, "evaluate", lambda folder: rows)
    assert main(["--only", "masks"]) == code
    assert f"| SAM | figure 0 | at least 0.90 | {values[0]:.3f} | 5 |\n" in capsys.readouterr().out


# --- DINOv2 --------------------------------------------------------------------------------------------------------


def groups_and_grids(shown: list[list[tuple[int, ...]]]) -> tuple[list[Group], list[list[torch.Tensor]]]:
    """Groups of scenes that show objects of these numbers, and grids whose patches tell which object they are of.

    The first objects of the groups differ; the second ones, and the backgrounds, are the same in all.
    """
    drawn, grids = [], []
    for number, scenes in enumerate(shown):
        labels = np.zeros((len(scenes), SIDE, SIDE), np.uint8)
        for label, objects in zip(labels, scenes, strict=True):
            for k in objects:
                label[140 * k : 140 * k + 112, 140:280] = k
        looks = (
            Instance("mug", "red", "white", ("plain", "dotted")[number]),
            Instance("kite", "blue", "white", "plain"),
        )
        drawn.append(Group(np.zeros((len(scenes), 1, 1, 3), np.uint8), labels, looks))
        table = torch.eye(4)[[3, number, 2]]  # background, first, second object
        grids.append([table[torch.from_numpy(label[::14, ::14].astype(int))] for label in labels])
    return drawn, grids


def test_pairs_are_of_different_scenes_and_told_by_their_kind() -> None:
    drawn, grids = groups_and_grids([[(1, 2), (1,)], [(1,), (2,)]])
    marks = features.pair_marks(drawn, grids, np.random.default_rng(0))
    assert marks["same"] == [True, True]  # the mug of the first group; the kites of both
    assert marks["look-alike"] == [False, False]  # its mugs with the other one
    # of three mugs and two kites, the two of one scene are no pair
    assert marks["painted alike"] == [] and marks["other"] == [False] * (3 * 2 - 1)
    assert marks["background"] and not any(marks["background"])


def test_recognition_is_measured_on_scenes_that_no_view_is_of() -> None:
    scenes = [(1,), (2,), (1, 2), (1,), (1,), (2,)]
    drawn, grids = groups_and_grids([scenes, scenes[::-1]])
    truth, named = features.recognise(drawn, grids, np.random.default_rng(0))
    # views are of the first three with the object: 0, 2, 3; of the other group 1, 2, 3
    assert truth == [-1, 0, -1, -1, -1, 1]
    assert named == [set(), {0}, set(), set(), set(), {1}]


def test_recall_and_precision_counted_by_hand() -> None:
    truth, named = [0, 0, 1, -1, -1], [{0}, {0, 1}, {0}, set(), {1}]
    recall, precision, clean = features.recognition_rows(truth, named, 2)
    assert (recall.value, recall.n) == (pytest.approx((2 / 2 + 0 / 1) / 2), 3)
    assert (precision.value, precision.n) == (pytest.approx((2 / 3 + 0 / 2) / 2), 5)
    assert (clean.value, clean.n) == (0.5, 2)


# --- Grounding DINO and SAM ----------------------------------------------------------------------------------------


class Finder:
    """Finds one object of each scene that is drawn, by the truth."""

    def __init__(self, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.which = which
        self.scenes: list[Scene] = []
        for name, draw in (("draw_scene", draw_scene), ("random_scene", random_scene)):
            monkeypatch.setattr(grounding, name, lambda *args, draw=draw, **more: self.drawn(draw(*args, **more)))

    def drawn(self, scene: Scene) -> Scene:
        self.scenes.append(scene)
        return scene

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        assert picture.size == (SIDE, SIDE)
        return torch.zeros(1)

    def propose(self, *_: Any) -> list[Regions]:
        scene = self.scenes[-1]
        height, width = scene.image.shape[:2]
        x0, y0, x1, y1 = scene.objects[self.which % len(scene.objects)].box_xyxy
        box = [x0 * SIDE / width, y0 * SIDE / height, x1 * SIDE / width, y1 * SIDE / height]
        return [Regions(np.array([box], np.float32), np.ones(1, np.float32))]

    ground = propose


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """IoU of two boxes."""
    width, height = (min(one[i + 2], two[i + 2]) - max(one[i], two[i]) for i in (0, 1))
    common = max(width, 0) * max(height, 0)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)) - common)


def test_the_object_that_is_found_is_the_one_that_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Finder(0, monkeypatch)
    covered = grounding.proposal_coverage(finder, np.random.default_rng(1), 12)  # type: ignore[arg-type]
    boxes = [[thing.box_xyxy for thing in scene.objects] for scene in finder.scenes]
    assert covered == [overlap(own[0], box) >= 0.5 for own in boxes for box in own]
    assert 12 <= sum(covered) < len(covered)


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_main_object_is_a_hit(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Finder(which, monkeypatch)
    hits = grounding.reference_hits(finder, np.random.default_rng(2), 20)  # type: ignore[arg-type]
    boxes = [[thing.box_xyxy for thing in scene.objects] for scene in finder.scenes]
    assert hits == [overlap(own[which % len(own)], own[0]) >= 0.5 for own in boxes]
    assert all(hits) is (which == 0) and {len(own) for own in boxes} == {1, 2}


def test_masks_that_fill_their_boxes_gain_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Filler:
        def __init__(self, *_: Any) -> None:
            pass

        def prepare(self, picture: Image.Image) -> torch.Tensor:
            return torch.zeros(3, 1, 1)

        def cut(self, pixels: torch.Tensor, boxes: np.ndarray) -> np.ndarray:
            assert len(pixels) == len(boxes)
            found = np.zeros((len(boxes), SIDE, SIDE), dtype=bool)
            for mask, (x0, y0, x1, y1) in zip(found, boxes.round().astype(int), strict=True):
                mask[y0:y1, x0:x1] = True
            return found

    monkeypatch.setattr(masks, "Segmenter", Filler)
    overlaps, gain = masks.evaluate(tmp_path, seed=3, n_scenes=6)
    assert 0.3 < overlaps.value < 0.9  # an object fills a part of its box
    assert gain.value == pytest.approx(0, abs=0.01) and gain.n == overlaps.n >= 6


# --- the whole recognition -----------------------------------------------------------------------------------------


def test_figures_of_the_whole_recognition_are_means_over_both_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the first sample 10 photos of each setting, of the second 30."""
    seeds, asked = [], []

    def write(out: Path, seed: int) -> None:
        seeds.append(seed)
        second = len(seeds) == 2
        for name, recalls, precisions, clean in (
            ("yollava-single", (1.0, 0.5), (None, 0.25), 0.0),
            ("this-is-my-single-positive", (0.75, 0.75), (0.75, 0.5), 0.0),
            ("this-is-my-single-fake", (0.0, 0.0), (0.0, 0.0), 0.8 if second else 0.4),
            ("this-is-my-single-negative_hard", (0.0, 0.0), (0.0, 0.0), 0.5 if second else 0.9),
            ("this-is-my-single-negative_other", (0.0, 0.0), (0.0, 0.0), 1.0 if second else 0.6),
        ):
            pairs = zip(recalls, precisions, strict=True)
            units = {key: {"recall": r, "precision": p} for key, (r, p) in zip("ab", pairs, strict=True)}
            measured = {"photos": 30 if second else 10, "photos_without_detection": clean, "per_concept": units}
            folder = out.parent / f"results/runs/20260101-00000{seed}-{name}"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(measured))

    recognition_seeds = recognition.SEEDS
    monkeypatch.setattr(recognition, "SEEDS", (7, 8))
    monkeypatch.setattr(recognition, "write_sample", write)
    monkeypatch.setattr(recognition, "run_command", lambda script, options: asked.append((script, options[1])))
    recall, precision, alike, imitated, other = recognition.evaluate(tmp_path)
    assert seeds == [7, 8] and len(set(recognition_seeds)) == len(recognition_seeds) > 2
    assert set(asked) == {(s, d) for s in ("extraction", "detection") for d in ("yollava", "this-is-my")}
    assert (recall.value, recall.n) == (0.75, 8)
    assert (precision.value, precision.n) == (0.5, 8)  # without the one that is none
    assert (alike.value, alike.n) == (pytest.approx((10 * 0.9 + 30 * 0.5) / 40), 40)
    assert (imitated.value, imitated.n) == (pytest.approx((10 * 0.4 + 30 * 0.8) / 40), 40)
    assert (other.value, other.n) == (pytest.approx((10 * 0.6 + 30 * 1.0) / 40), 40)
