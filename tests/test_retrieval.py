"""Proposals against views: cosine, argmax, strict threshold, merging, overlap, ties, and lookup by name."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch

from pekit.records import Concept, Detection, Gallery
from pekit.retrieval import Matcher, detect, drop_overlapping, locate

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


def best(gallery: Gallery, descriptors: np.ndarray) -> np.ndarray:
    return Matcher(gallery, torch.device("cpu")).best_similarities(torch.from_numpy(descriptors))


class TestSimilarity:
    def test_cosine_with_the_best_view_only_of_valid_ones(self) -> None:
        stored = gallery(4, 1, 3, invalid=((2, 0),))
        proposals = np.random.default_rng(1).normal(size=(30, 16)).astype(np.float32) * 7
        expected = [
            [max(plain.cosine(p, v) for v, ok in zip(d, valid, strict=True) if ok)
             for d, valid in zip(stored.descriptors, stored.valid, strict=True)]
            for p in proposals
        ]  # fmt: skip
        np.testing.assert_allclose(best(stored, proposals), expected, atol=1e-6)

    def test_length_does_not_matter(self) -> None:
        stored = gallery(2, 2, 2)
        proposals = np.random.default_rng(2).normal(size=(5, 16)).astype(np.float32)
        np.testing.assert_allclose(best(stored, proposals * 1000), best(stored, proposals), atol=1e-6)

    def test_a_concept_without_a_valid_view_never_matches(self) -> None:
        stored = gallery(1, 1, invalid=((0, 0),))
        similarities = best(stored, stored.descriptors[0])
        assert similarities[0, 0] == -np.inf
        assert np.isfinite(similarities[0, 1])
        assert [d.concept for d in detect(similarities, np.array([[0, 0, 9, 9]]), KEYS, -1.0, 10)] == ["lamp"]
        nothing = best(gallery(1, invalid=((0, 0),)), stored.descriptors[0])
        assert detect(nothing, np.array([[0, 0, 9, 9]]), KEYS, -1.0, 10) == []
        assert locate(nothing, np.array([[0, 0, 9, 9]]), 0, "mug", 10) is None

    def test_no_proposals(self) -> None:
        assert best(gallery(2, 1), np.zeros((0, 16), dtype=np.float32)).shape == (0, 2)
        nothing = np.zeros((0, 2), dtype=np.float32)
        assert detect(nothing, np.zeros((0, 4), dtype=np.int64), KEYS, 0.0, 518) == []
        assert locate(nothing, np.zeros((0, 4), dtype=np.int64), 1, "lamp", 518) is None


class TestDetect:
    def test_a_photo_worked_out_by_hand(self) -> None:
        similarities = np.array(
            [[0.9, 0.2, 0.1], [0.8, 0.85, 0.0], [0.76, 0.1, 0.0], [0.7, 0.6, 0.74], [0.1, 0.95, 0.3]], dtype=np.float32
        )
        boxes = np.array([[10, 20, 30, 40], [0, 0, 5, 5], [25, 10, 50, 30], [1, 1, 99, 99], [90, 90, 100, 100]])
        found = detect(similarities, boxes, KEYS, 0.75, 100)
        assert [d.concept for d in found] == ["mug", "lamp"]  # kite's best 0.74 does not count
        assert found[0].score == pytest.approx((0.9 + 0.76) / 2, abs=1e-6)
        assert found[0].box_xyxyn == pytest.approx((0.10, 0.10, 0.50, 0.40))
        assert found[1].score == pytest.approx((0.85 + 0.95) / 2, abs=1e-6)
        assert found[1].box_xyxyn == pytest.approx((0.0, 0.0, 1.0, 1.0))

    @pytest.mark.parametrize("threshold", [0.75, 0.5, 0.625])
    def test_the_threshold_is_strict(self, threshold: float) -> None:
        box = np.array([[0, 0, 1, 1]])
        exact = np.array([[threshold]], dtype=np.float32)  # these thresholds are exact in binary
        assert detect(exact, box, KEYS, threshold, 10) == []
        above = np.nextafter(exact, np.float32(2))
        assert len(detect(above, box, KEYS, threshold, 10)) == 1

    def test_a_proposal_counts_for_its_best_concept_alone(self) -> None:
        found = detect(np.array([[0.9, 0.91]], dtype=np.float32), np.array([[0, 0, 1, 1]]), KEYS, 0.5, 10)
        assert [d.concept for d in found] == ["lamp"]

    def test_equal_concepts_go_to_the_first(self) -> None:
        found = detect(np.array([[0.8, 0.9, 0.9]], dtype=np.float32), np.array([[0, 0, 1, 1]]), KEYS, 0.5, 10)
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
        found = {d.concept: d for d in detect(best(stored, proposals), boxes, KEYS, threshold, 100)}
        assert found.keys() == expected.keys() and found
        for concept, (score, box) in expected.items():
            assert found[concept].score == pytest.approx(score, abs=1e-6)
            assert found[concept].box_xyxyn == pytest.approx(box, abs=1e-9)


class TestLocate:
    def test_the_one_best_proposal_without_a_threshold(self) -> None:
        similarities = np.array([[0.9, -0.3], [0.8, -0.1], [0.7, -0.2]], dtype=np.float32)
        boxes = np.array([[0, 0, 10, 10], [10, 20, 30, 40], [1, 1, 2, 2]])
        found = locate(similarities, boxes, 1, "lamp", 100)  # every proposal is more like a mug, and all are poor
        assert found == Detection("lamp", pytest.approx(-0.1), pytest.approx((0.1, 0.2, 0.3, 0.4)))

    def test_equal_similarities_go_to_the_first_listed(self) -> None:
        similarities = np.array([[0.1], [0.6], [0.6], [0.6]], dtype=np.float32)
        boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6], [2, 2, 3, 3], [1, 1, 2, 2]])
        found = locate(similarities, boxes, 0, "mug", 10)
        assert found is not None and found.box_xyxyn == pytest.approx((0.5, 0.5, 0.6, 0.6))


def detection(concept: str, score: float, *box: float) -> Detection:
    return Detection(concept, score, box)  # type: ignore[arg-type]


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
        found = drop_overlapping([self.big, self.inside, self.half], percent)
        assert [d.concept for d in found] == kept

    @pytest.mark.parametrize(("percent", "kept"), [(50.1, ["mug", "kite"]), (49.9, ["mug"])])
    def test_the_larger_share_of_the_two_decides(self, percent: float, kept: list[str]) -> None:
        # 0.02 of area in common: half of kite's 0.04, a thirty-second of mug's 0.64
        assert [d.concept for d in drop_overlapping([self.big, self.half], percent)] == kept

    def test_boxes_apart_or_touching_do_not_overlap(self) -> None:
        pair = [detection("mug", 0.8, 0, 0, 0.5, 0.5), detection("lamp", 0.9, 0.5, 0, 1, 0.5)]
        assert drop_overlapping(pair, 0) == pair

    def test_detect_applies_it(self) -> None:
        similarities = np.array([[0.9, 0], [0, 0.8]], dtype=np.float32)
        boxes = np.array([[10, 10, 20, 20], [0, 0, 40, 40]])
        assert [d.concept for d in detect(similarities, boxes, KEYS, 0.5, 100)] == ["mug", "lamp"]
        assert [d.concept for d in detect(similarities, boxes, KEYS, 0.5, 100, 90)] == ["mug"]
