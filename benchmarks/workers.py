"""Several processes of one run against one process: wall time of detection.py on the sample, start-up included.

``--copies`` is how often each photo of the drawn sample is there. On a machine with GPUs,
``--device auto --processes 4`` compares one GPU with four.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import parser, report, rounds, start
from pekit.records import UserError

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = parser(__doc__, processes=2, copies=6)
    options.add_argument("--datasets", type=Path, help="from python -m pekit.sample; drawn where left out")
    options.add_argument("--models", default="sample")
    args = options.parse_args()
    if args.datasets and args.copies != options.get_default("copies"):
        options.error("--copies goes with the drawn sample, not with --datasets")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets = args.datasets or folder / "datasets"
        if args.datasets is None:
            run("-m", "pekit.sample", "--out", str(datasets))
            for photo in [*(datasets / "YoLLaVA/test").glob("*/*")]:
                for copy in range(1, args.copies):  # or starting would be most of the time
                    shutil.copy(photo, photo.with_stem(f"{photo.stem}-{copy}"))
        shared = ["--dataset", "yollava", "--data_folder", str(datasets), "--features_folder", str(folder / "features"),
                  "--models", args.models, "--device", args.device, "--n_training_views", "3"]  # fmt: skip
        run(str(ROOT / "extraction.py"), *shared)
        detect = [str(ROOT / "detection.py"), *shared, "--save_folder", str(folder / "results")]
        ids = ",".join(str(i) for i in range(args.processes))
        threads = str(args.threads)  # of the one process, or of all together
        sides = {
            "one process": lambda: run(*detect, OMP_NUM_THREADS=threads),
            f"{args.processes} processes": lambda: run(*detect, "--device_ids", ids, OMP_NUM_THREADS=threads),
        }
        for seconds in rounds(sides, args.repeats, warm=sides):  # extraction.py has read all that they read
            report(args, seconds, "one process")


def run(*command: str, **environment: str) -> None:
    """Run one of PeKit's commands quietly."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])} ended with exit code {done.returncode}:\n{done.stderr.strip()}")


if __name__ == "__main__":
    start(main)
