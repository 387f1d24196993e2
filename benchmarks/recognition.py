"""Everything beside the models, per photo: masks, pooling, matching, merging; the released steps against ours.

The released steps run on the CPU, whatever ``--device`` says of ours; each finds the patch grid where it runs.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.drawn import PATCH, SIZE, random_boxes, random_gallery, random_grid
from benchmarks.measuring import in_turn, parser, report, start
from benchmarks.released import draw_masks, match, merge, pool
from pekit import features
from pekit.hub import pick_device
from pekit.retrieval import Matcher, detect

THRESHOLD = 0.75


def main() -> None:
    args = parser(__doc__, proposals=900, concepts=40, views=5, width=1024, seed=0).parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    grid, proposed = random_grid(rng, args.width), random_boxes(rng, args.proposals)
    gallery = random_gallery(rng, args.concepts, args.views, args.width, grid)
    device = pick_device(args.device)
    matcher, views, there = Matcher(gallery, device), torch.from_numpy(gallery.descriptors), grid.to(device)

    spent: dict[str, list[float]] = defaultdict(list)

    def timed(step: Callable, *of: Any) -> Any:
        started = time.perf_counter()
        result = step(*of)
        spent[step.__name__].append(time.perf_counter() - started)
        return result

    def released() -> dict[int, tuple[float, np.ndarray]]:
        masks = timed(draw_masks, np.clip(np.trunc(proposed), 0, SIZE), SIZE)
        pooled = timed(pool, grid, masks)
        return timed(merge, timed(match, pooled, views), masks, THRESHOLD)

    def ours() -> list:
        boxes = features.pixel_boxes(proposed, SIZE)
        pooled, which = features.pool_boxes(there, features.patch_rectangles(boxes, PATCH))
        kept = which >= 0
        return detect(matcher.best(pooled).of_proposals(which[kept]), boxes[kept], gallery.keys, THRESHOLD, SIZE)

    theirs, found = released(), {int(d.concept): d for d in ours()}
    assert theirs.keys() == found.keys()
    for concept, (score, box) in theirs.items():
        assert abs(found[concept].score - score) < 1e-5
        assert np.allclose(np.array(found[concept].box_xyxyn) * SIZE, box)
    seconds = in_turn({"released steps": released, "pekit": ours}, args.repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report(
        args,
        seconds,
        "released steps",
        times_faster=round(medians["released steps"] / medians["pekit"], 1),
        released_ms={step: round(1e3 * statistics.median(values), 1) for step, values in spent.items()},
        detections_equal=len(theirs),
    )


if __name__ == "__main__":
    start(main)
