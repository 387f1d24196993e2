"""Runs the scripts, one after the other, on the sample in --out's datasets/.

One process runs them all, so that libraries load once; each command is printed as a person would type it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pekit.cli import folder
from pekit.datasets import NEGATIVE_SPLITS, POSITIVE

VIEWS = "3"


def commands(out: Path, models: str) -> list[tuple[str, list[str]]]:
    """The commands of the sample run: script name and arguments."""
    folders = ["--data_folder", f"{out}/datasets", "--features_folder", f"{out}/features"]
    shared = [*folders, "--models", models, "--n_training_views", VIEWS, "--batch_size", "8"]
    results = ["--save_folder", f"{out}/results"]
    runs: list[tuple[str, list[str]]] = []
    for dataset, options in (
        ("yollava", []),
        ("myvlm", []),
        ("this-is-my", []),
        ("this-is-my", ["--multi_concept", "True"]),
    ):
        chosen = ["--dataset", dataset, *options]
        runs.append(("extraction", [*chosen, *shared]))
        splits = (POSITIVE, *NEGATIVE_SPLITS) if dataset == "this-is-my" and not options else ("",)
        for split in splits:
            own = ["--test_split", split] if split else []
            runs.append(("detection", [*chosen, *own, *shared, *results]))
    for dataset, options in (
        ("yollava", ["--with_baseline"]),
        ("yollava", ["--task", "tqa"]),
        ("this-is-my", ["--with_baseline", "--overlays"]),
        ("this-is-my", ["--multi_concept", "True", "--with_baseline", "--overlays"]),
    ):
        # open questions are graded by exact match: a judge needs a key and a network
        runs.append(("vqa", ["--dataset", dataset, *options, "--grader", "exact", *shared, *results]))
    return runs


def run_command(script: str, options: list[str]) -> int:
    """Run a script in this process; its exit code."""
    from pekit.cli import detection, extraction, vqa

    return {"extraction": extraction, "detection": detection, "vqa": vqa}[script].main(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sample.

    Returns:
        The first exit code that is not 0, else 0; 2 where there is no sample.
    """
    parser = argparse.ArgumentParser(prog="python -m pekit.sample.run", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", type=folder, required=True, help="Folder with datasets/ in it, from python -m pekit.sample."
    )
    parser.add_argument("--models", default="sample", help="As the scripts take it (sample).")
    args = parser.parse_args(argv)
    if not (args.out / "datasets").is_dir():
        make = f"python -m pekit.sample --out {args.out}/datasets"
        print(f"error: {args.out} has no datasets/ in it: make them by {make}", file=sys.stderr)
        return 2
    # threads that wait for each other awake take from a busy machine more than models this small gain by them
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    started, asking = time.monotonic(), 0.0
    try:
        for script, options in commands(args.out, args.models):
            print(f"\n$ python {script}.py {shlex.join(options)}", flush=True)
            began = time.monotonic()
            if code := run_command(script, options):
                return code
            if script == "vqa":
                asking += time.monotonic() - began
    except KeyboardInterrupt:  # between two scripts: each has its own answer
        return 130
    print(f"\nall of it took {time.monotonic() - started:.0f} s, {asking:.0f} s of them the questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
