"""Retrieval: proposals against views by cosine similarity, threshold, merging, overlap (method, step 5). Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from pekit.records import Detection, Gallery

RESIDENT_BYTES = 1 << 28  # a gallery whose fp32 unit descriptors take less is kept ready
CHUNK_VIEWS = 8192


class Matcher:
    """A gallery made ready for matching.

    A small one lies on the device as unit descriptors; a large one is converted and multiplied in chunks, through the
    same few buffers again and again, so that memory stays bounded whatever its size.

    Args:
        gallery: C concepts with V views each.
        device: where descriptors of proposals will lie.
    """

    def __init__(self, gallery: Gallery, device: torch.device) -> None:
        self._concepts, self._views, self._width = gallery.descriptors.shape
        self._device = device
        self._stored = torch.from_numpy(gallery.descriptors)
        self._padding = None if gallery.valid.all() else torch.from_numpy(~gallery.valid.T).to(device)
        self._step = min(self._concepts, max(1, CHUNK_VIEWS // self._views))
        self._unit = None
        if 4 * gallery.descriptors.size <= RESIDENT_BYTES:
            self._step = self._concepts
            rows = self._stored.to(device, torch.float32).transpose(0, 1)  # view-major: maxima run along concepts
            self._unit = normalize(rows.flatten(0, 1), dim=1)
            return
        if device.type == "cuda":
            self._stored = self._stored.to(device)
        self._rows = torch.empty((self._views * self._step, self._width), device=device)

    def best_similarities(self, descriptors: torch.Tensor) -> np.ndarray:
        """Best cosine similarity of each proposal with any view of each concept.

        Args:
            descriptors: f32 (M, D).

        Returns:
            f32 (M, C); -inf for a concept without a valid view.
        """
        unit = normalize(descriptors, dim=1)
        best = unit.new_empty((len(unit), self._concepts))
        product = unit.new_empty(len(unit) * self._views * self._step)
        for first in range(0, self._concepts, self._step):
            last = min(first + self._step, self._concepts)
            count = self._views * (last - first)
            similarities = product[: len(unit) * count].view(len(unit), count)
            if self._unit is not None:
                torch.mm(unit, self._unit.T, out=similarities)
            else:
                rows = self._rows[:count]
                rows.unflatten(0, (self._views, -1)).copy_(self._stored[first:last].transpose(0, 1))
                torch.mm(unit, rows.T, out=similarities)
                similarities /= torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
            each = similarities.unflatten(1, (self._views, -1))
            if self._padding is not None:
                each.masked_fill_(self._padding[:, first:last], -torch.inf)
            best[:, first:last] = each.amax(1)
        return best.cpu().numpy()


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
