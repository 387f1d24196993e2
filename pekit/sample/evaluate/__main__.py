"""Prints what the sample checkpoints reach on held-out scenes: `python -m pekit.sample.evaluate`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pekit.cli import SAMPLE_CHECKPOINTS
from pekit.records import UserError

# Each has a module here with evaluate(folder: Path) -> list[Row]; the last one is given the folder of all models.
MODELS = ("grounding", "masks", "features", "lvlm", "recognition")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; reading its help loads no model library."""
    parser = argparse.ArgumentParser(prog="python -m pekit.sample.evaluate", description=__doc__)
    parser.add_argument("--models", type=Path, default=SAMPLE_CHECKPOINTS, help="folder of the model folders.")
    parser.add_argument("--only", choices=MODELS, help="measure this one alone.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints.

    Args:
        argv: arguments; those of the process when None.

    Returns:
        The exit status: 0 when every bound is kept, 1 when one is not, 2 after an error the user can mend, 130 after
        Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    # Models this small wait for a second thread longer than it helps them, ten times longer on busy cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    missed = False
    print("| model | asked of it | wanted | figure | n |\n|---|---|---|---|---|")
    try:
        for name in (args.only,) if args.only else MODELS:
            folder = args.models if name == "recognition" else args.models / name
            if not folder.is_dir():
                raise UserError(
                    f"{folder} does not exist: train it with python -m pekit.sample.train, or name another --models."
                )
            for row in import_module(f"pekit.sample.evaluate.{name}").evaluate(folder):
                missed |= not row.met
                print(f"| {row.model} | {row.asked} | {row.bound_text} | {row.value:.3f} | {row.n} |", flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
