"""Shared by the benchmarks: run the sides in turn, several times, and report medians and ratios as text and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from pekit.cli import natural, positive
from pekit.records import UserError


def parser(description: str | None, **sizes: int) -> argparse.ArgumentParser:
    """A parser with a benchmark's sizes as options, and those that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in sizes.items():
        result.add_argument(f"--{name}", type=natural if name in ("seed", "workers") else positive, default=value)
    result.add_argument("--repeats", type=positive, default=5, help="how often each side runs; medians are reported")
    result.add_argument("--device", default="cpu", help="where the models and PeKit's own steps run")
    result.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="threads of the arithmetic")
    result.add_argument("--json", type=_writable, help="also write the result to this file")
    return result


def _writable(text: str) -> Path:
    """A file that can be written: to find out in the end would lose the whole measurement."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"'{text}' cannot be written")
    return path


def start(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark; a mistake is one sentence and exit code 2, Ctrl-C is 130."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def rounds(
    sides: dict[str, Callable[[], Any]], repeats: int, warm: Container[str] = ()
) -> Iterator[dict[str, list[float]]]:
    """Seconds of each side so far, after each round in which the sides run one after the other.

    Args:
        sides: what to measure, by name.
        repeats: rounds that are measured.
        warm: sides that have no need of the unmeasured round before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        if name not in warm:
            side()
    for _ in range(repeats):
        for name, side in sides.items():
            settle()
            started = time.perf_counter()
            side()
            settle()
            seconds[name].append(time.perf_counter() - started)
        yield seconds


def in_turn(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, the sides run alternately after an unmeasured round."""
    *_, seconds = rounds(sides, repeats)
    return seconds


def settle() -> None:
    """Let the GPU finish, where one is in use: its clock is not the program's."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def report(args: argparse.Namespace, seconds: dict[str, list[float]], base: str, **figures: Any) -> dict[str, Any]:
    """Print medians and the ratio of each side to ``base``; write the JSON where asked for."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "sizes": {name: value for name, value in vars(args).items() if name != "json"},
        "seconds": seconds,
        "medians": medians,
        "ratios": {name: value / medians[base] for name, value in medians.items()},
        "base": base,
        **figures,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    for name, value in medians.items():
        spread = f"{min(seconds[name]) * 1e3:.1f}-{max(seconds[name]) * 1e3:.1f}"
        print(f"{name:38} {value * 1e3:12.1f} ms  ({spread})  {value / medians[base]:9.3f} x {base}")
    for name, value in figures.items():
        print(f"{name}: {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return result
