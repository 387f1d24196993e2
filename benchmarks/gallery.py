"""Large galleries: seconds to open one, and matching a photo's proposals against the bare matrix product."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measuring import in_turn, parser, report
from pekit import gallery
from pekit.datasets import concept_of_folder
from pekit.retrieval import CHUNK_VIEWS, Matcher
from pekit.views import view_name


def write_gallery(folder: Path, concepts: int, views: int, width: int, seed: int) -> list[str]:
    """A consolidated file as PeKit writes it, beside as many empty views as are counted (all would take an hour)."""
    names = [f"{i:06d}-mug" for i in range(concepts)]
    files = [view_name(name, str(view), 0) for name in names for view in range(views)]
    for name in names:
        (folder / name).mkdir()
    for file in files[: gallery.LARGE + 1]:
        (folder / file).touch()
    rows = torch.randn((concepts * views, width), generator=torch.Generator().manual_seed(seed)).half()
    signature = gallery._signature(folder)
    tensors = {
        "rows": rows,
        "valid": torch.ones(len(rows), dtype=torch.bool),
        "starts": torch.arange(0, len(rows) + 1, views),
        "augmentations": torch.zeros(len(rows), dtype=torch.int64),
        "names": gallery._names_tensor(names, files),
    }
    save_file(tensors, folder / gallery.CONSOLIDATED, {"signature": signature})
    return names


def main() -> None:
    args = parser(__doc__, proposals=900, concepts=100_000, views=5, width=1024, seed=0).parse_args()
    torch.set_num_threads(args.threads)
    gallery.LARGE = min(gallery.LARGE, args.concepts * args.views - 1)  # a toy gallery is opened from its file, too
    with tempfile.TemporaryDirectory() as name:
        names = write_gallery(Path(name), args.concepts, args.views, args.width, args.seed)
        concepts = [concept_of_folder("yollava", name) for name in names]
        loading = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            known = gallery.load_gallery(Path(name), concepts, "normal", args.views, 0)
            loading.append(time.perf_counter() - started)
        matcher = Matcher(known, torch.device("cpu"))
        proposals = torch.randn((args.proposals, args.width))
        unit = torch.nn.functional.normalize(proposals, dim=1)
        chunk = torch.nn.functional.normalize(torch.randn((CHUNK_VIEWS, args.width)), dim=1).T.contiguous()
        total = args.concepts * args.views

        def bare() -> None:
            product = torch.empty((len(unit), CHUNK_VIEWS))
            for first in range(0, total, CHUNK_VIEWS):
                last = min(CHUNK_VIEWS, total - first)
                torch.mm(unit, chunk[:, :last], out=product[:, :last] if last == CHUNK_VIEWS else None)

        sides = {"bare product": bare, "pekit": lambda: matcher.best(proposals)}
        seconds = in_turn(sides, args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report(args, seconds, "bare product", seconds_to_load=sorted(loading)[len(loading) // 2], peak_gib=round(peak, 2))


if __name__ == "__main__":
    main()
