"""Retrieval: proposals against views by cosine similarity, threshold, merging, overlap (method, step 5). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from pekit.records import Detection, Gallery

RESIDENT_BYTES = 1 << 28  # a gallery whose fp32 unit descriptors take less is kept ready
CHUNK_VIEWS = 8000  # rows of a product that lie a power of two apart share cache lines and take half as long again
ALIGNED = 16  # numbers; the same happens to rows that begin anywhere


@dataclass(frozen=True)
class Best:
    """What decisions need to know of the M x C similarities of proposals and concepts, which may be too many to keep.

    Attributes:
        concepts: int64 (M,), the concept most similar to each proposal, the first one where several are.
        scores: f32 (M,), its similarity; -inf where no concept has a valid view.
        proposals: int64 (C,), the proposal most similar to each concept, the first one where several are.
        nearest: f32 (C,), its similarity; -inf for a concept without a valid view, NaN where there are no proposals.
    """

    concepts: np.ndarray
    scores: np.ndarray
    proposals: np.ndarray
    nearest: np.ndarray

    @classmethod
    def none(cls, n_concepts: int) -> Best:
        """Of no proposals."""
        nowhere, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(nowhere, nothing, np.zeros(n_concepts, np.int64), np.full(n_concepts, np.nan, np.float32))

    def of_proposals(self, which: np.ndarray) -> Best:
        """The same of M proposals that share descriptors, where this is of the descriptors.

        Args:
            which: int (M,), the descriptor of each proposal; each is some proposal's.
        """
        _, first = np.unique(which, return_index=True)
        return Best(self.concepts[which], self.scores[which], first[self.proposals], self.nearest)


class Matcher:
    """A gallery made ready for matching.

    A small one lies on the device as unit descriptors; a large one is converted in chunks. Either is multiplied in
    chunks, through the same few buffers again and again, so that memory stays bounded whatever its size.

    Args:
        gallery: C concepts with V views each.
        device: where descriptors of proposals will lie.
    """

    def __init__(self, gallery: Gallery, device: torch.device) -> None:
        self._concepts, self._views, self._width = gallery.descriptors.shape
        self._stored = torch.from_numpy(gallery.descriptors)
        self._padding = None if gallery.valid.all() else torch.from_numpy(~gallery.valid.T).to(device)
        self._step = min(self._concepts, max(1, CHUNK_VIEWS // self._views))
        self._unit = None
        if 4 * gallery.descriptors.size <= RESIDENT_BYTES:
            rows = self._stored.to(device, torch.float32).transpose(0, 1)  # view-major: maxima run along concepts
            self._unit = normalize(rows, dim=2)
            return
        if device.type == "cuda":
            self._stored = self._stored.to(device)
        self._rows = torch.empty((self._views * self._step, self._width), device=device)

    def best(self, descriptors: torch.Tensor) -> Best:
        """Compare proposals with every view.

        Args:
            descriptors: f32 (M, D).

        Returns:
            By cosine similarity, the best concept of each proposal, and the best proposal of each concept.
        """
        if not len(descriptors):
            return Best.none(self._concepts)
        unit = normalize(descriptors, dim=1)
        scores, concepts = unit.new_full((len(unit),), -torch.inf), torch.zeros(len(unit), device=unit.device).long()
        nearest, proposals = unit.new_empty(self._concepts), concepts.new_empty(self._concepts)
        # Fresh memory costs more than what is written to it, so all chunks share this.
        product = unit.new_empty((len(unit), -(-self._views * self._step // ALIGNED) * ALIGNED))
        maxima = unit.new_empty(len(unit) * self._step)
        for first in range(0, self._concepts, self._step):
            last = min(first + self._step, self._concepts)
            each = self._similarities(unit, first, last, product)
            highest = maxima[: len(unit) * (last - first)].view(len(unit), last - first)
            torch.amax(each, 1, out=highest)
            score, place = highest.max(1)
            better = score > scores  # not where equal: the first concept counts
            scores = torch.where(better, score, scores)
            concepts = torch.where(better, place + first, concepts)
            nearest[first:last], proposals[first:last] = highest.max(0)
        return Best(*(part.cpu().numpy() for part in (concepts, scores, proposals, nearest)))

    def _similarities(self, unit: torch.Tensor, first: int, last: int, room: torch.Tensor) -> torch.Tensor:
        """Of proposals f32 (M, D) with the views of some concepts: f32 (M, V, last - first), in `room` f32 (M, L)."""
        count = self._views * (last - first)
        similarities = room[:, :count]
        if self._unit is not None:
            torch.mm(unit, self._unit[:, first:last].flatten(0, 1).T, out=similarities)
        else:
            rows = self._rows[:count]
            rows.unflatten(0, (self._views, -1)).copy_(self._stored[first:last].transpose(0, 1))
            torch.mm(unit, rows.T, out=similarities)
            similarities /= torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
        each = similarities.unflatten(1, (self._views, -1))
        if self._padding is not None:
            each.masked_fill_(self._padding[:, first:last], -torch.inf)
        return each


def detect(
    best: Best,
    boxes: np.ndarray,
    keys: Sequence[str],
    threshold: float,
    size: int,
    box_overlap_thresh: float = 100.0,
) -> list[Detection]:
    """Decide which concepts are in a photo.

    Args:
        best: of M proposals and C concepts.
        boxes: int (M, 4), tight boxes of the proposals, px of the S x S picture.
        keys: C concept keys.
        threshold: a proposal counts when its best similarity exceeds it (strictly).
        size: S.
        box_overlap_thresh: per cent; see ``drop_overlapping``.

    Returns:
        One detection per concept found, in the order of the concepts.
    """
    scores = best.scores.astype(np.float64)
    merged = np.flatnonzero(scores > threshold)
    if not len(merged):
        return []
    merged = merged[np.argsort(best.concepts[merged], kind="stable")]
    named, first, counts = np.unique(best.concepts[merged], return_index=True, return_counts=True)
    means = np.add.reduceat(scores[merged], first) / counts
    upper, lower = np.minimum.reduceat(boxes[merged, :2], first), np.maximum.reduceat(boxes[merged, 2:], first)
    corners = np.concatenate([upper, lower], axis=1)
    found = [
        Detection(keys[concept], float(mean), _relative(box, size))
        for concept, mean, box in zip(named, means, corners, strict=True)
    ]
    return drop_overlapping(found, corners.tolist(), box_overlap_thresh)


def locate(best: Best, boxes: np.ndarray, column: int, key: str, size: int) -> Detection | None:
    """Find the one proposal most similar to a concept that is known by name, without a threshold.

    Args:
        best: of M proposals and C concepts.
        boxes: int (M, 4), px of the S x S picture.
        column: which concept.
        key: its key.
        size: S.

    Returns:
        The detection (the first listed where similarities are equal), or None where no proposal can match.
    """
    score = float(best.nearest[column])
    return Detection(key, score, _relative(boxes[best.proposals[column]], size)) if np.isfinite(score) else None


def _relative(corners: np.ndarray, size: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (corners / size).tolist()
    return x0, y0, x1, y1


def drop_overlapping(
    detections: list[Detection], boxes: Sequence[Sequence[int]], box_overlap_thresh: float
) -> list[Detection]:
    """Of two detections that lie in each other, keep the one with the higher score.

    Two lie in each other when the larger share of one box inside the other, in per cent, exceeds
    ``box_overlap_thresh``; 100 keeps everything.

    Args:
        detections: N detections.
        boxes: their corners in whole px, in which a share is exact.
        box_overlap_thresh: per cent.
    """
    if box_overlap_thresh >= 100:
        return detections
    dropped: set[int] = set()
    order = sorted(range(len(detections)), key=lambda i: -detections[i].score)
    for place, i in enumerate(order):
        if i in dropped:
            continue
        for j in order[place + 1 :]:
            if _lie_in_each_other(boxes[i], boxes[j], box_overlap_thresh):
                dropped.add(j)
    return [detection for i, detection in enumerate(detections) if i not in dropped]


def _lie_in_each_other(a: Sequence[int], b: Sequence[int], percent: float) -> bool:
    """Whether the intersection of two boxes is more than so much of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return False
    return 100 * width * height > percent * min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
