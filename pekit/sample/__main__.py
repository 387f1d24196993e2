"""Writes the sample benchmark, the untrained sample models, or both, from a seed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pekit.cli import folder, natural
from pekit.records import UserError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; reading its help loads nothing else."""
    parser = argparse.ArgumentParser(prog="python -m pekit.sample", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", type=folder, help="Folder that receives the benchmarks in their published layouts: a --data_folder."
    )
    parser.add_argument(
        "--models", type=folder, help="Folder that receives small untrained models of the real architectures."
    )
    parser.add_argument("--seed", type=natural, default=42, help="Seed of everything random (42).")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write what the command line asks for.

    Returns:
        The exit code: 2 after an error the user can mend, 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        if not (args.out or args.models):
            raise UserError(
                "nothing to write: give --out DIR for the sample benchmark, --models DIR for models, or both"
            )
        if args.out:
            from pekit.sample.benchmark import write_sample

            for name, written in write_sample(args.out, args.seed).items():
                print(f"{name}: {written}")
        if args.models:
            from pekit.sample.models import write_models

            write_models(args.models, args.seed)
            print(f"models: {args.models}")
    except KeyboardInterrupt:
        print("stopped: the same command writes the whole", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
