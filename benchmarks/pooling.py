"""Pooling alone: prefix sums as PeKit does it, one product with the membership matrix, and the plain mean per box."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.drawn import PATCH, SIZE, random_boxes, random_grid
from benchmarks.measuring import in_turn, parser, report, start
from pekit import features
from pekit.hub import pick_device


def main() -> None:
    args = parser(__doc__, proposals=900, width=1024, seed=0).parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    grid, proposed = random_grid(rng, args.width).to(pick_device(args.device)), random_boxes(rng, args.proposals)
    rectangles = features.patch_rectangles(features.pixel_boxes(proposed, SIZE), PATCH)

    def prefix_sums() -> torch.Tensor:
        pooled, which = features.pool_boxes(grid, rectangles)
        return pooled[which[which >= 0]]

    def product() -> torch.Tensor:
        pooled, which = features.pool_masks(grid, features.rectangle_members(rectangles, len(grid)))
        return pooled[which[which >= 0]]

    def plain() -> torch.Tensor:
        means = [grid[y0:y1, x0:x1].double().mean((0, 1)) for x0, y0, x1, y1 in rectangles if x1 > x0 and y1 > y0]
        return torch.stack(means)

    exact = plain()
    errors = {side.__name__: float((side() - exact).abs().max()) for side in (prefix_sums, product)}
    assert max(errors.values()) < 1e-5
    seconds = in_turn({"plain means": plain, "membership product": product, "prefix sums": prefix_sums}, args.repeats)
    report(args, seconds, "plain means", largest_difference_from_plain_mean=errors)


if __name__ == "__main__":
    start(main)
