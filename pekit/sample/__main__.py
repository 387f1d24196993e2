"""``python -m pekit.sample``: writes the drawn miniature of the benchmarks, or untrained small models."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The options; reading their help loads no library."""
    parser = argparse.ArgumentParser(prog="python -m pekit.sample", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Write a miniature of each benchmark here, in its published layout, with sample.json: what each photo "
        "shows. DIR is a --data_folder for the scripts.",
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="Write small untrained models of the real architectures here: grounding, features, masks, lvlm.",
    )
    parser.add_argument("--seed", type=int, default=42, help="What everything random is drawn from (42).")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write what the command line asks for.

    Returns:
        Exit code: 2 after an error that the user can mend.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out is None and args.models is None:
        parser.error("name a folder: --out DIR for the photos, --models DIR for untrained models")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} is negative: give 0 or more")
    from pekit.records import UserError

    try:
        if args.out:
            _write_photos(args.out, args.seed)
        if args.models:
            from pekit.sample.models import build_models

            build_models(args.models, args.seed)
            print(f"wrote untrained models to {args.models}")
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write_photos(out: Path, seed: int) -> None:
    from pekit.sample.benchmark import write_benchmarks

    started = time.monotonic()
    manifest = write_benchmarks(out, seed)
    concepts = sum(map(len, manifest["concepts"].values()))
    taken = time.monotonic() - started
    print(f"wrote {len(manifest['photos'])} photos of {concepts} concepts to {out} in {taken:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
