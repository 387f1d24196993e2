"""The released code's recognition steps, written anew from their description: one mask, one vector at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, interpolate


def draw_masks(boxes: np.ndarray, size: int) -> np.ndarray:
    """Every box as a picture: bool (M, S, S)."""
    masks = np.zeros((len(boxes), size, size), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def pool(grid: torch.Tensor, masks: np.ndarray) -> list[torch.Tensor | None]:
    """The mean feature under each mask, mask by mask; None where it holds no patch."""
    pooled: list[torch.Tensor | None] = []
    for mask in masks:
        small = interpolate(torch.from_numpy(mask)[None, None].float(), size=grid.shape[:2], mode="nearest")[0, 0] > 0
        features = grid[small]
        pooled.append(features.mean(0) if len(features) else None)
    return pooled


def match(pooled: list[torch.Tensor | None], views: torch.Tensor) -> list[tuple[int, float]]:
    """The best concept of each proposal and its similarity, proposal by proposal: views f32 (C, V, D)."""
    found = []
    for descriptor in pooled:
        best = (-1, -1.0)
        if descriptor is not None:
            similarity, concept = cosine_similarity(descriptor[None, None], views, dim=2).amax(1).max(0)
            best = (int(concept), float(similarity))
        found.append(best)
    return found


def merge(found: list[tuple[int, float]], masks: np.ndarray, threshold: float) -> dict[int, tuple[float, np.ndarray]]:
    """Per concept found: the mean score and the tight box of the united masks, corners past the last pixel."""
    merged = {}
    for concept in sorted({concept for concept, similarity in found if similarity > threshold}):
        own = [i for i, (name, similarity) in enumerate(found) if name == concept and similarity > threshold]
        region = np.zeros_like(masks[0])
        for i in own:
            region |= masks[i]
        rows, columns = np.nonzero(region)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        merged[concept] = (float(np.mean([found[i][1] for i in own])), box)
    return merged
