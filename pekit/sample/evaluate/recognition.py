"""How well the scripts recognise concepts with the sample checkpoints, on sample benchmarks of other seeds."""

from __future__ import annotations

import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

from pekit.records import UserError
from pekit.sample.benchmark import write_sample
from pekit.sample.evaluate import Row
from pekit.sample.run import commands, run_command

SEEDS = (7, 8, *range(31, 37))  # of one sample to the next, the share of clean photos alone differs by a tenth
POSITIVE = ("yollava-single", "this-is-my-single-positive")
NEGATIVE = {
    "look-alikes": "this-is-my-single-negative_hard",
    "close imitations": "this-is-my-single-fake",
    "other things": "this-is-my-single-negative_other",
}


def evaluate(folder: Path) -> list[Row]:
    """Runs extraction.py and detection.py as `make sample` does: 518 px, threshold 0.75, three views a concept.

    Args:
        folder: folder of the model folders.

    Returns:
        Recall and precision, means over concepts, and the share of negative photos without a false detection.
    """
    found: dict[str, list[dict]] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
            out = Path(name)
            write_sample(out / "datasets", seed)
            for script, options in commands(out, str(folder)):
                wanted = script != "vqa" and options[1] != "myvlm" and "--multi_concept" not in options
                if wanted and run_command(script, options):
                    raise UserError(f"{script}.py failed with the models in {folder}: see its message above")
            for file in (out / "results" / "runs").glob("*/metrics.json"):
                found.setdefault(file.parent.name.split("-", 2)[2], []).append(json.loads(file.read_text()))
    rows = []
    for metric in ("recall", "precision"):
        values = [unit[metric] for name in POSITIVE for run in found[name] for unit in run["per_concept"].values()]
        known = np.array([np.nan if value is None else value for value in values])
        rows.append(Row("whole recognition", f"{metric}, macro", float(np.nanmean(known)), 0.90, True, len(values)))
    for kind, name in NEGATIVE.items():
        photos = [run["photos"] for run in found[name]]
        clean = np.average([run["photos_without_detection"] for run in found[name]], weights=photos)
        rows.append(
            Row("whole recognition", f"photos of {kind} with no false detection", float(clean), 0.90, True, sum(photos))
        )
    return rows
