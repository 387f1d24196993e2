"""Shared by the benchmarks: run the sides in turn, several times, and report medians and ratios as text and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def parser(description: str | None, **sizes: int) -> argparse.ArgumentParser:
    """A parser with a benchmark's sizes as options, and those that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in sizes.items():
        result.add_argument(f"--{name}", type=int, default=value)
    result.add_argument("--repeats", type=int, default=5, help="how often each side runs; medians are reported")
    result.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the arithmetic")
    result.add_argument("--json", type=Path, help="also write the result to this file")
    return result


def in_turn(sides: dict[str, Callable[[], Any]], repeats: int, unmeasured: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, the sides run alternately after some unmeasured rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-unmeasured, repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


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
    }
    for name, value in medians.items():
        spread = f"{min(seconds[name]) * 1e3:.1f}-{max(seconds[name]) * 1e3:.1f}"
        print(f"{name:32} {value * 1e3:12.1f} ms  ({spread})  {value / medians[base]:9.3f} x {base}")
    for name, value in figures.items():
        print(f"{name}: {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return result
