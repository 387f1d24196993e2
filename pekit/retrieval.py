"""Retrieval: proposals against views by cosine similarity, threshold, merging, overlap (method, step 5). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from pekit.records import Detection, Gallery


class Matcher:
    """A gallery made ready for matching: unit descriptors on the device.

    Args:
        gallery: C concepts with V views each.
        device: where descriptors of proposals will lie.
    """

    def __init__(self, gallery: Gallery, device: torch.device) -> None:
        self.concepts, self._views = gallery.valid.shape
        flat = torch.from_numpy(gallery.descriptors).to(device).flatten(0, 1)
        self._unit = normalize(flat, dim=1).T  # (D, C·V)
        self._padding = torch.from_numpy(~gallery.valid).to(device)
        self._padded = not gallery.valid.all()

    def best_similarities(self, descriptors: torch.Tensor) -> np.ndarray:
        """Best cosine similarity of each proposal with any view of each concept.

        Args:
            descriptors: f32 (M, D).

        Returns:
            f32 (M, C); -inf for a concept without a valid view.
        """
        similarities = (normalize(descriptors, dim=1) @ self._unit).unflatten(1, (self.concepts, self._views))
        if self._padded:
            similarities = similarities.masked_fill(self._padding, -torch.inf)
        return similarities.amax(2).cpu().numpy()


def detect(
    similarities: np.ndarray,
    boxes: np.ndarray,
    keys: Sequence[str],
    threshold: float,
    size: int,
    box_overlap_thresh: float = 100.0,
) -> list[Detection]:
    """Decide which concepts are in a photo.

    Args:
        similarities: f32 (M, C), best similarity of each proposal with each concept.
        boxes: int (M, 4), tight boxes of the proposals, px of the S x S picture.
        keys: C concept keys.
        threshold: a proposal counts when its best similarity exceeds it (strictly).
        size: S.
        box_overlap_thresh: per cent; see ``drop_overlapping``.

    Returns:
        One detection per concept found, in the order of the concepts.
    """
    if not len(similarities):
        return []
    names = similarities.argmax(1)  # the first concept where similarities are equal
    best = similarities.max(1).astype(np.float64)
    counts = best > threshold
    found = []
    for concept in np.unique(names[counts]):
        merged = counts & (names == concept)
        corners = np.concatenate([boxes[merged, :2].min(0), boxes[merged, 2:].max(0)])
        found.append(Detection(keys[concept], float(best[merged].mean()), _relative(corners, size)))
    return drop_overlapping(found, box_overlap_thresh)


def locate(similarities: np.ndarray, boxes: np.ndarray, column: int, key: str, size: int) -> Detection | None:
    """Find the one proposal most similar to a concept that is known by name, without a threshold.

    Args:
        similarities: f32 (M, C).
        boxes: int (M, 4), px of the S x S picture.
        column: which concept.
        key: its key.
        size: S.

    Returns:
        The detection (the first listed where similarities are equal), or None where no proposal can match.
    """
    if not len(similarities):
        return None
    best = int(similarities[:, column].argmax())
    score = float(similarities[best, column])
    return Detection(key, score, _relative(boxes[best], size)) if np.isfinite(score) else None


def _relative(corners: np.ndarray, size: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(corner) / size for corner in corners)
    return x0, y0, x1, y1


def drop_overlapping(detections: list[Detection], box_overlap_thresh: float) -> list[Detection]:
    """Of two detections that lie in each other, keep the one with the higher score.

    Two lie in each other when the larger share of one box inside the other, in per cent, exceeds
    ``box_overlap_thresh``; 100 keeps everything.
    """
    dropped: set[int] = set()
    order = sorted(range(len(detections)), key=lambda i: -detections[i].score)
    for place, i in enumerate(order):
        if i in dropped:
            continue
        for j in order[place + 1 :]:
            if 100 * _share_inside(detections[i].box_xyxyn, detections[j].box_xyxyn) > box_overlap_thresh:
                dropped.add(j)
    return [detection for i, detection in enumerate(detections) if i not in dropped]


def _share_inside(a: Sequence[float], b: Sequence[float]) -> float:
    """The intersection of two boxes as a share of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
