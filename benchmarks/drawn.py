"""Random inputs of the sizes that the paper's models give."""

from __future__ import annotations

import numpy as np
import torch

from pekit.records import Concept, Gallery

SIZE, PATCH = 518, 14


def random_grid(rng: np.random.Generator, width: int) -> torch.Tensor:
    """A patch grid f32 (37, 37, D) that varies slowly over the picture, as features do."""
    side = SIZE // PATCH
    coarse = torch.from_numpy(rng.standard_normal((1, width, 6, 6), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[0].permute(1, 2, 0)
    return (smooth + 0.3 * torch.from_numpy(rng.standard_normal((side, side, width), dtype=np.float32))).contiguous()


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Proposals f32 (M, 4) in px: of all sizes, some leaving the picture."""
    centres, sides = rng.uniform(0, SIZE, (count, 2)), rng.lognormal(4.5, 0.7, (count, 2))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)


def random_gallery(rng: np.random.Generator, concepts: int, views: int, width: int, grid: torch.Tensor) -> Gallery:
    """Views f32 (C, V, D) near patches of the grid, so that some proposals match."""
    places = rng.integers(0, grid.shape[0], (concepts, 2))
    centres = grid[places[:, 0], places[:, 1]].numpy()[:, None]
    descriptors = centres + 0.5 * rng.standard_normal((concepts, views, width), dtype=np.float32)
    known = tuple(Concept(f"{i}", "", "") for i in range(concepts))
    return Gallery(known, descriptors.astype(np.float32), np.ones((concepts, views), dtype=bool))
