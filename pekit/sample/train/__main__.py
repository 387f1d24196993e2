"""Trains the sample checkpoints: `python -m pekit.sample.train {grounding,features,masks,lvlm,all} --out DIR`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from pekit.cli import folder, natural, positive
from pekit.parallel import usable_cores
from pekit.records import UserError
from pekit.sample.models import KINDS


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; reading its help loads no model library."""
    parser = argparse.ArgumentParser(prog="python -m pekit.sample.train", description=__doc__)
    parser.add_argument("model", choices=(*KINDS, "all"), help="which checkpoint to train.")
    parser.add_argument(
        "--out",
        type=folder,
        required=True,
        help="folder that receives one folder per model, and 'work' with drawn scenes and the state to resume from.",
    )
    parser.add_argument("--device", default="cpu", help="torch device to train on.")
    parser.add_argument("--steps", type=positive, help="optimiser steps; by default what the shipped checkpoint took.")
    parser.add_argument("--seed", type=natural, default=42, help="seed of the scenes, the weights and the order.")
    cores = min(8, usable_cores())  # each takes half a gigabyte
    parser.add_argument("--workers", type=natural, default=cores, help="processes that draw scenes and prepare steps.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what the command line asks for.

    Args:
        argv: arguments; those of the process when None.

    Returns:
        The exit status: 2 after an error the user can mend, 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    from pekit.hub import pick_device
    from pekit.sample.train.runs import Run

    try:
        device = str(pick_device(args.device))  # before scenes are drawn for nothing
        for name in KINDS if args.model == "all" else (args.model,):
            module = import_module(f"pekit.sample.train.{name}")
            module.train(Run(name, args.out, device, args.steps or module.STEPS, args.seed, args.workers))
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last saved step", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        print(f"{error}: give fewer --workers if memory was short; the same command goes on", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
