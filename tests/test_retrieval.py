"""Proposals against views: cosine, argmax, strict threshold, merging, overlap, ties, and lookup by name."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch

from pekit.records import Concept, Detection, Gallery
from pekit.retrieval import Best, Matcher, detect, drop_overlapping, locate

KEYS = ("mug", "lamp", "kite")


def gallery(*views: int, width: int = 16, seed: int = 0, invalid: tuple = ()) -> Gallery:
    """Random descriptors, ``views`` of them per concept, of very different lengths; the padding holds rubbish."""
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(len(views), max(views), width)) * rng.uniform(0.01, 50, (len(views), max(views), 1))
    valid = np.arange(max(views)) < np.array(views)[:, None]
    for place in invalid:
        valid[place] = False
    concepts = tuple(Concept(key, f"{key}.", key) for key in KEYS[: len(views)])
    return Gallery(concepts, descriptors.astype(np.float32), valid)


def match(gallery: Gallery, descriptors: np.ndarray) -> Best:
    return Matcher(gallery, torch.device("cpu")).best(torch.from_numpy(descriptors))


def similarities(gallery: Gallery, descriptors: np.ndarray) -> np.ndarray:
    """Of each proposal, alone, with each concept: (M, C)."""
    return np.stack([match(gallery, one[None]).nearest for one in descriptors])


def best_of(*rows: list[float]) -> Best:
    """What a small table of similarities, one row per proposal, comes to, looked up cell by cell."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    concepts, proposals = ([line.index(max(line)) for line in lines] for lines in (rows, columns))
    scores, nearest = ([max(line) for line in lines] for lines in (rows, columns))
    return Best(*map(np.array, (concepts, np.float32(scores), proposals, np.float32(nearest))))


class TestSimilarity:
    def test_cosine_with_the_best_view_only_of_valid_ones(self) -> None:
        stored = gallery(4, 1, 3, invalid=((2, 0),))
        proposals = np.random.default_rng(1).normal(size=(30, 16)).astype(np.float32) * 7
        expected = [
            [max(plain.cosine(p, v) for v, ok in zip(d, valid, strict=True) if ok)
             for d, valid in zip(stored.descriptors, stored.valid, strict=True)]
            for p in proposals
        ]  # fmt: skip
        np.testing.assert_allclose(similarities(stored, proposals), expected, atol=1e-6)
        together, alone = match(stored, proposals), best_of(*expected)
        np.testing.assert_array_equal(together.concepts, alone.concepts)
        np.testing.assert_array_equal(together.proposals, alone.proposals)
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-6)
        np.testing.assert_allclose(together.nearest, alone.nearest, atol=1e-6)

    def test_length_does_not_matter(self) -> None:
        stored = gallery(2, 2, 2)
        proposals = np.random.default_rng(2).normal(size=(5, 16)).astype(np.float32)
        np.testing.assert_allclose(similarities(stored, proposals * 1000), similarities(stored, proposals), atol=1e-6)

    def test_a_concept_without_a_valid_view_never_matches(self) -> None:
        stored = gallery(1, 1, invalid=((0, 0),))
        found = match(stored, stored.descriptors[0])
        assert found.nearest[0] == -np.inf
        assert np.isfinite(found.nearest[1])
        assert [d.concept for d in detect(found, np.array([[0, 0, 9, 9]]), KEYS, -1.0, 10)] == ["lamp"]
        nothing = match(gallery(1, invalid=((0, 0),)), stored.descriptors[0])
        assert detect(nothing, np.array([[0, 0, 9, 9]]), KEYS, -1.0, 10) == []
        assert locate(nothing, np.array([[0, 0, 9, 9]]), 0, "mug", 10) is None

    def test_no_proposals(self) -> None:
        nothing = match(gallery(2, 1), np.zeros((0, 16), dtype=np.float32))
        assert np.isnan(nothing.nearest).tolist() == [True, True]
        assert detect(nothing, np.zeros((0, 4), dtype=np.int64), KEYS, 0.0, 518) == []
        assert locate(nothing, np.zeros((0, 4), dtype=np.int64), 1, "lamp", 518) is None


class TestDetect:
    def test_a_photo_worked_out_by_hand(self) -> None:
        best = best_of([0.9, 0.2, 0.1], [0.8, 0.85, 0.0], [0.76, 0.1, 0.0], [0.7, 0.6, 0.74], [0.1, 0.95, 0.3])
        boxes = np.array([[10, 20, 30, 40], [0, 0, 5, 5], [25, 10, 50, 30], [1, 1, 99, 99], [90, 90, 100, 100]])
        found = detect(best, boxes, KEYS, 0.75, 100)
        assert [d.concept for d in found] == ["mug", "lamp"]  # kite's best 0.74 does not count
        assert found[0].score == pytest.approx((0.9 + 0.76) / 2, abs=1e-6)
        assert found[0].box_xyxyn == pytest.approx((0.10, 0.10, 0.50, 0.40))
        assert found[1].score == pytest.approx((0.85 + 0.95) / 2, abs=1e-6)
        assert found[1].box_xyxyn == pytest.approx((0.0, 0.0, 1.0, 1.0))

    @pytest.mark.parametrize("threshold", [0.75, 0.5, 0.625])
    def test_the_threshold_is_strict(self, threshold: float) -> None:
        box = np.array([[0, 0, 1, 1]])
        exact = np.float32(threshold)  # these thresholds are exact in binary
        assert detect(best_of([float(exact)]), box, KEYS, threshold, 10) == []
        above = np.nextafter(exact, np.float32(2))
        assert len(detect(best_of([float(above)]), box, KEYS, threshold, 10)) == 1

    def test_a_proposal_counts_for_its_best_concept_alone(self) -> None:
        found = detect(best_of([0.9, 0.91]), np.array([[0, 0, 1, 1]]), KEYS, 0.5, 10)
        assert [d.concept for d in found] == ["lamp"]

    def test_equal_concepts_go_to_the_first(self) -> None:
        found = detect(best_of([0.8, 0.9, 0.9]), np.array([[0, 0, 1, 1]]), KEYS, 0.5, 10)
        assert [d.concept for d in found] == ["lamp"]

    @pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4])
    def test_equal_to_masks_drawn_and_merged(self, threshold: float) -> None:
        rng = np.random.default_rng(3)
        stored = gallery(2, 3, 1, width=8)
        proposals = rng.normal(size=(25, 8)).astype(np.float32)
        corners = rng.integers(0, 60, (25, 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 40, (25, 2))], axis=1)
        views = {
            key: [v for v, ok in zip(d, valid, strict=True) if ok]
            for key, d, valid in zip(KEYS, stored.descriptors, stored.valid, strict=True)
        }
        masks = [plain.box_mask(box, 100) for box in boxes]
        expected = plain.detections(masks, list(proposals), views, threshold)
        found = {d.concept: d for d in detect(match(stored, proposals), boxes, KEYS, threshold, 100)}
        assert found.keys() == expected.keys() and found
        for concept, (score, box) in expected.items():
            assert found[concept].score == pytest.approx(score, abs=1e-6)
            assert found[concept].box_xyxyn == pytest.approx(box, abs=1e-9)


class TestLocate:
    def test_the_one_best_proposal_without_a_threshold(self) -> None:
        best = best_of([0.9, -0.3], [0.8, -0.1], [0.7, -0.2])
        boxes = np.array([[0, 0, 10, 10], [10, 20, 30, 40], [1, 1, 2, 2]])
        found = locate(best, boxes, 1, "lamp", 100)  # every proposal is more like a mug, and all are poor
        assert found == Detection("lamp", pytest.approx(-0.1), pytest.approx((0.1, 0.2, 0.3, 0.4)))

    def test_equal_similarities_go_to_the_first_listed(self) -> None:
        best = best_of([0.1], [0.6], [0.6], [0.6])
        boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [2, 2, 3, 3], [1, 1, 2, 2]])
        found = locate(best, boxes, 0, "mug", 10)
        assert found is not None and found.box_xyxyn == pytest.approx((0.5, 0.5, 0.6, 0.6))


def detection(concept: str, score: float, *box: float) -> Detection:
    return Detection(concept, score, box)  # type: ignore[arg-type]


class TestShared:
    def test_proposals_that_share_a_descriptor(self) -> None:
        # descriptors 0 and 1; listed are proposals 1, 0, 1, 0
        found = best_of([0.9, 0.2, 0.3], [0.1, 0.8, 0.4]).of_proposals(np.array([1, 0, 1, 0]))
        expected = best_of([0.1, 0.8, 0.4], [0.9, 0.2, 0.3], [0.1, 0.8, 0.4], [0.9, 0.2, 0.3])
        for name in ("concepts", "scores", "proposals", "nearest"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def keys_kept(detections: list[Detection], percent: float) -> list[str]:
    """Of detections whose corners are tenths, on a picture of 10 px."""
    boxes = [[round(10 * corner) for corner in detection.box_xyxyn] for detection in detections]
    return [d.concept for d in drop_overlapping(detections, boxes, percent)]


class TestOverlap:
    big = detection("mug", 0.8, 0.0, 0.0, 0.8, 0.8)
    inside = detection("lamp", 0.9, 0.1, 0.1, 0.3, 0.3)  # all of it in big
    half = detection("kite", 0.7, 0.7, 0.0, 0.9, 0.2)  # half of it in big

    @pytest.mark.parametrize(
        ("percent", "kept"),
        [
            (100, ["mug", "lamp", "kite"]),  # never
            (99.9, ["lamp", "kite"]),  # the higher score stays, the larger box goes; kite and lamp are apart
            (50.1, ["lamp", "kite"]),
            (49, ["lamp", "kite"]),  # kite loses only to mug, and mug is gone
            (0, ["lamp", "kite"]),
        ],
    )
    def test_the_higher_score_stays(self, percent: float, kept: list[str]) -> None:
        assert keys_kept([self.big, self.inside, self.half], percent) == kept

    @pytest.mark.parametrize(("percent", "kept"), [(50.1, ["mug", "kite"]), (50, ["mug", "kite"]), (49.9, ["mug"])])
    def test_the_larger_share_of_the_two_decides(self, percent: float, kept: list[str]) -> None:
        # 0.02 of area in common: half of kite's 0.04, a thirty-second of mug's 0.64
        assert keys_kept([self.big, self.half], percent) == kept

    def test_boxes_apart_or_touching_do_not_overlap(self) -> None:
        mug = detection("mug", 0.8, 0, 0, 0.3, 0.3)
        for corner in ((0.3, 0), (0, 0.3), (0.6, 0), (0, 0.6), (0.6, 0.6)):  # the last is apart both ways
            lamp = detection("lamp", 0.9, *corner, *(place + 0.3 for place in corner))
            assert keys_kept([mug, lamp], 0) == ["mug", "lamp"], corner

    def test_a_share_of_exactly_the_limit_does_not_exceed_it(self) -> None:
        best = best_of([0.9, 0], [0, 0.8])
        for size in (224, 518):
            for left in range(size - 20):  # the second begins 4 px before the first ends: 40 % of both
                boxes = np.array([[left, 7, left + 10, 20], [left + 6, 7, left + 16, 20]])
                assert len(detect(best, boxes, KEYS, 0.5, size, 40)) == 2
                boxes[1, 0] -= 1
                assert len(detect(best, boxes, KEYS, 0.5, size, 40)) == 1

    def test_detect_applies_it(self) -> None:
        best = best_of([0.9, 0], [0, 0.8])
        boxes = np.array([[10, 10, 20, 20], [0, 0, 40, 40]])
        assert [d.concept for d in detect(best, boxes, KEYS, 0.5, 100)] == ["mug", "lamp"]
        assert [d.concept for d in detect(best, boxes, KEYS, 0.5, 100, 90)] == ["mug"]
