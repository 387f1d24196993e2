"""Large galleries: seconds to gather and to open one, and matching a photo's proposals against the bare matrix product.

The consolidated file is written by a process of its own, so that the memory measured is that of opening and matching.
What gathering it from the views' own files takes is measured on ``--gathered`` of them.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.measuring import in_turn, parser, report, start
from pekit import consolidated, gallery
from pekit.hub import pick_device
from pekit.names import concept_of_folder
from pekit.records import View
from pekit.retrieval import CHUNK_VIEWS, Matcher
from pekit.views import save_view, view_file, view_name


def write_gallery(folder: Path, concepts: int, views: int, width: int, seed: int) -> list[str]:
    """A consolidated file as PeKit writes it, beside as many empty views as are counted (all would take an hour).

    Returns:
        Names of the concepts.
    """
    names = [f"{i:06d}-mug" for i in range(concepts)]
    files = [view_name(name, str(view), 0) for name in names for view in range(views)]
    for name in names:
        (folder / name).mkdir()
    for file in files[: gallery.LARGE + 1]:
        (folder / file).touch()
    rows = torch.randn((concepts * views, width), generator=torch.Generator().manual_seed(seed)).half()
    dated = consolidated._dated(folder)
    tensors = {
        "rows": rows,
        "valid": torch.ones(len(rows), dtype=torch.bool),
        "starts": torch.arange(0, len(rows) + 1, views),
        "augmentations": torch.zeros(len(rows), dtype=torch.int64),
        "names": consolidated._names_tensor(names, files, [dated[name] for name in names]),
    }
    save_file(tensors, folder / consolidated.CONSOLIDATED, {"signature": consolidated._signature(dated)})
    return names


def seconds_to_gather(folder: Path, views: int, width: int) -> float:
    """Of one view in its own file, of 300 patches."""
    patches = np.random.default_rng(0).standard_normal((300, width), dtype=np.float32)
    for number in range(views):
        name = f"{number // 5}-mug"
        save_view(view_file(folder, name, str(number), 0), View(name, "x.jpg", 0, patches, patches.mean(0)))
    started = time.perf_counter()
    consolidated._gather(folder, consolidated._dated(folder), None)
    return (time.perf_counter() - started) / views


def main() -> None:
    sizes = {"proposals": 900, "concepts": 100_000, "views": 5, "width": 1024, "gathered": 1000, "seed": 0}
    args = parser(__doc__, **sizes).parse_args()
    torch.set_num_threads(args.threads)
    gallery.LARGE = min(gallery.LARGE, args.concepts * args.views - 1)  # a toy gallery is opened from its file, too
    with tempfile.TemporaryDirectory() as name:
        with ProcessPoolExecutor(1, get_context("spawn")) as writer:
            sizes = args.concepts, args.views, args.width, args.seed
            names = writer.submit(write_gallery, Path(name), *sizes).result()
        concepts = [concept_of_folder("yollava", name) for name in names]
        loading = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            known = gallery.load_gallery(Path(name), concepts, "normal", args.views, 0)
            loading.append(time.perf_counter() - started)
        device = pick_device(args.device)
        matcher = Matcher(known, device)
        proposals = torch.randn((args.proposals, args.width)).to(device)
        unit = torch.nn.functional.normalize(proposals, dim=1)
        chunk = torch.nn.functional.normalize(torch.randn((CHUNK_VIEWS, args.width)).to(device), dim=1).T.contiguous()
        total = args.concepts * args.views

        def bare() -> None:
            product = torch.empty((len(unit), CHUNK_VIEWS), device=device)
            for first in range(0, total, CHUNK_VIEWS):
                last = min(CHUNK_VIEWS, total - first)
                torch.mm(unit, chunk[:, :last], out=product[:, :last] if last == CHUNK_VIEWS else None)

        sides = {"bare product": bare, "pekit": lambda: matcher.best(proposals)}
        seconds = in_turn(sides, args.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        gathering = seconds_to_gather(Path(name) / "gathered", args.gathered, args.width)
    report(
        args,
        seconds,
        "bare product",
        seconds_to_open=statistics.median(loading),
        peak_gib=round(peak, 2),
        milliseconds_to_gather_a_view=round(1e3 * gathering, 2),
    )


if __name__ == "__main__":
    start(main)
