"""What a training leaves on disk: its state to resume from, half-precision weights, a record of how they came about."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pekit.files import replacing
from pekit.records import UserError
from pekit.sample.evaluate import Row


def check_begun(path: Path, folder: Path, seed: int, steps: int) -> None:
    """Refuses to replace a model by one that is trained anew, or to go on with a run of another seed, whose drawings
    would not belong to the weights, or to a lesser end.

    To be asked before anything is drawn or written.

    Args:
        path: state file, which may be missing.
        folder: of the model.
        seed: of the run that is to go on.
        steps: it is to have in all.

    Raises:
        UserError: there is a model but no state to go on from, or the run was begun with another seed, or has done
            more steps.
    """
    if not path.exists():
        if (folder / "model.safetensors").exists():
            raise UserError(f"{folder} holds a model, and {path} is not there to go on from: choose another --out")
        return
    begun = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    if (known := begun.get("seed")) != seed:
        raise UserError(f"the run of {path} has --seed {known}, not {seed}: go on with that, or {_anew(path)}")
    if begun["step"] > steps:
        raise UserError(f"the run of {path} has done {begun['step']} steps, --steps {steps} are fewer: {_anew(path)}")


def load_state(path: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Fills models, optimiser and schedule from the last saved state of a run.

    Args:
        path: state file; when it is missing nothing changes.
        parts: whatever has a `state_dict`, by name.

    Returns:
        Steps done and seconds spent, both 0 at the start of a run.

    Raises:
        UserError: the run was begun by another version.
    """
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location="cpu")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, ValueError, RuntimeError):
        mend = f"go on with the version that began it, or {_anew(path)}"
        raise UserError(f"{path} is of a model built otherwise: {mend}") from None
    return state["step"], state["seconds"]


def _anew(path: Path) -> str:
    return f"choose another --out, or delete {path} to begin anew"


def save_state(path: Path, parts: dict[str, Any], seed: int, step: int, seconds: float) -> None:
    """Saves the state of a run so that an interruption never leaves half a file.

    Args:
        path: state file.
        parts: whatever has a `state_dict`, by name.
        seed: of the run.
        step: steps done.
        seconds: time spent so far.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as partial:
        torch.save({"seed": seed, "step": step, "seconds": seconds} | states, partial)


def halve(folder: Path) -> None:
    """Stores the weights of a saved model in 16 bits.

    The configuration keeps saying float32, so `from_pretrained` computes in 32 bits as before.

    Args:
        folder: holds model.safetensors.
    """
    path = folder / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})


def release(
    folder: Path, model: str, rows: Sequence[Row], card: str, steps: int, seed: int, seconds: float, device: str
) -> None:
    """Writes the training record and the model card of a trained model, and shows its figures.

    Args:
        folder: model folder.
        model: its name on the command line.
        rows: measured on scenes and instances never trained on.
        card: Markdown with places for {table}, {minutes}, {machine}, {seed} and {steps}.
        steps: optimiser steps done.
        seed: of the run.
        seconds: training time.
        device: where it was trained.
    """
    on_gpu = device.startswith("cuda")
    processor = torch.cuda.get_device_name(device) if on_gpu else "one processor core, shared with other work"
    command = f"python -m pekit.sample.train {model} --out DIR --steps {steps} --seed {seed}"
    record = {
        "command": command if device == "cpu" else f"{command} --device {device}",
        "seed": seed,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "machine": processor if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores, 1 training thread",
        "torch": torch.__version__,
        "held_out": {row.asked: round(row.value, 4) for row in rows},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    table = "\n".join(f"| {row.asked} | {row.value:.3f} | {row.bound_text} |" for row in rows)
    minutes = round(seconds / 60)
    (folder / "README.md").write_text(
        card.format(table=table, seed=seed, steps=steps, minutes=minutes, machine=processor)
    )
    for row in rows:
        print(f"{row.asked}: {row.value:.3f} ({row.bound_text})")
