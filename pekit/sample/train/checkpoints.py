"""What a training leaves on disk: its state to resume from, half-precision weights, a record of how they came about."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def rate(progress: float) -> float:
    """Share of the full learning rate: a short rise, a plateau, a straight fall to zero."""
    return min(1.0, progress / 0.03 + 0.01, (1 - progress) / 0.5)


def load_state(path: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Fills models, optimiser and schedule from the last saved state of a run.

    Args:
        path: state file; when it is missing nothing changes.
        parts: whatever has a `state_dict`, by name.

    Returns:
        Steps done and seconds spent, both 0 at the start of a run.
    """
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["seconds"]


def save_state(path: Path, parts: dict[str, Any], step: int, seconds: float) -> None:
    """Saves the state of a run so that an interruption never leaves half a file.

    Args:
        path: state file.
        parts: whatever has a `state_dict`, by name.
        step: steps done.
        seconds: time spent so far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "seconds": seconds} | {name: part.state_dict() for name, part in parts.items()}, partial)
    partial.replace(path)


def halve(folder: Path) -> None:
    """Stores the weights of a saved model in 16 bits.

    The configuration keeps saying float32, so `from_pretrained` computes in 32 bits as before.

    Args:
        folder: holds model.safetensors.
    """
    path = folder / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})


def write_record(folder: Path, model: str, steps: int, seed: int, seconds: float, figures: dict[str, float]) -> None:
    """Writes training.json.

    Args:
        folder: model folder.
        model: its name on the command line.
        steps: optimiser steps done.
        seed: of the run.
        seconds: training time.
        figures: measured on scenes and instances never trained on.
    """
    record = {
        "command": f"python -m pekit.sample.train {model} --out DIR --steps {steps} --seed {seed}",
        "seed": seed,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 training thread",
        "torch": torch.__version__,
        "held_out": figures,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
