"""What all trainings have in common: a run that begins or goes on, its steps, and the model that it leaves."""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pekit.files import replacing
from pekit.records import UserError, counted
from pekit.sample.evaluate import Row
from pekit.start import interrupts_held_back

_Record = TypeVar("_Record")

log = logging.getLogger(__name__)

SHOW_EVERY, SAVE_EVERY = 25, 100  # steps


@dataclass(frozen=True)
class Run:
    """One training of one model.

    Attributes:
        model: its name on the command line, and that of its folder.
        out: folder of the model folders; its folder "work" keeps drawn scenes and the state to resume from.
        device: torch device to train on.
        steps: optimiser steps in all.
        seed: of scenes, weights and order.
        workers: processes that prepare batches, 0 for this one alone, and draw scenes, at least one.
    """

    model: str
    out: Path
    device: str
    steps: int
    seed: int
    workers: int

    @property
    def folder(self) -> Path:
        """Receives the model."""
        return self.out / self.model

    @property
    def work(self) -> Path:
        """Keeps drawn scenes and the state."""
        return self.out / "work"

    @property
    def state(self) -> Path:
        """File to resume from."""
        return self.work / f"{self.model}.pt"


def begin(run: Run) -> None:
    """Seeds torch; refuses to replace a model by one that is trained anew, or to go on with a run of another seed,
    whose drawings would not belong to the weights, or to a lesser end.

    To be called before anything is drawn or written.

    Raises:
        UserError: there is a model but no state to go on from, or the run was begun with another seed, or has done
            more steps.
    """
    torch.set_num_threads(1)  # faster than two for models this small
    torch.manual_seed(run.seed)  # the heads that only a training needs are made by torch's own generator
    path = run.state
    if not path.exists():
        if (run.folder / "model.safetensors").exists():
            raise UserError(f"{run.folder} holds a model, and {path} is not there to go on from: choose another --out")
        return
    begun = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    if (known := begun.get("seed")) != run.seed:
        raise UserError(f"the run of {path} has --seed {known}, not {run.seed}: go on with that, or {_anew(path)}")
    if (done := begun["step"]) > run.steps:
        raise UserError(f"the run of {path} has done {done} steps, --steps {run.steps} are fewer: {_anew(path)}")


def take_steps(
    run: Run, batches: Dataset[Any], parts: Mapping[str, Any], step: Callable[[int, Any], Mapping[str, Tensor]]
) -> float:
    """Takes the steps that are left, saves the state now and then, and shows how it goes.

    Args:
        run: which training.
        batches: by step; a batch depends on nothing that was prepared before it. Worker processes prepare them ahead.
        parts: whatever has a `state_dict`, by name: models, averages, optimisers.
        step: takes a step with a batch, which it is to bring to the device itself; returns scalars to show. They are
            read from the device when they are shown: until then nothing waits for it.

    Returns:
        Seconds spent, earlier parts of the run included.

    Raises:
        UserError: the state is of a model built otherwise.
    """
    first, seconds = load_state(run, parts)
    began = time.monotonic() - seconds
    workers = min(run.workers, run.steps - first)
    prepared = DataLoader(
        _Sent(batches),
        batch_size=None,
        sampler=range(first, run.steps),
        num_workers=workers,
        # Forking a process that has run torch operations can hang in the child, so the workers start afresh.
        multiprocessing_context="spawn" if workers else None,
    )
    with interrupts_held_back():
        received = iter(prepared)
    shown: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(received, first):
        for name, value in step(number, _mapped(batch, _Array, lambda sent: torch.from_numpy(sent.numbers))).items():
            shown.setdefault(name, []).append(value.detach())
        done, passed = number + 1, time.monotonic() - began
        if done % SHOW_EVERY == 0 or done == run.steps:
            means = {name: np.nanmean(torch.stack(values).tolist()) for name, values in shown.items()}
            figures = ", ".join(
                f"{name} {means[name]:.3f}" for name in sorted(means, key=lambda name: (name != "loss", name))
            )
            log.info("%s, step %d of %d, %.0f s: %s", run.model, done, run.steps, passed, figures)
            shown = {}
        if done % SAVE_EVERY == 0 or done == run.steps:
            save_state(run, parts, done, passed)
    return time.monotonic() - began


def moved(record: _Record, device: str | torch.device) -> _Record:
    """A copy of a dataclass with its tensors, also those of dictionaries and dataclasses in it, on a torch device."""
    result: _Record = _mapped(record, Tensor, lambda tensor: tensor.to(device))
    return result


@dataclass(frozen=True)
class _Array:
    """A tensor's numbers on their way from a worker, through a pipe.

    Tensors would go through /dev/shm, which is small in containers, and loses a batch without a word where it is full.
    """

    numbers: np.ndarray


class _Sent(Dataset[Any]):
    """Batches in the form in which workers send them."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Any:
        # Contiguous, as they arrive: convolutions of other layouts round otherwise, with workers or without.
        return _mapped(self._batches[step], Tensor, lambda tensor: _Array(tensor.contiguous().numpy()))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy with everything of a kind changed, in dictionaries and dataclasses, too."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(part, kind, change) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _mapped(getattr(value, field.name), kind, change) for field in fields(value)}
        return replace(value, **parts)
    return value


def load_state(run: Run, parts: Mapping[str, Any]) -> tuple[int, float]:
    """Fills models, optimiser and schedule from the last saved state of a run; where there is none nothing changes.

    Args:
        run: which training.
        parts: whatever has a `state_dict`, by name.

    Returns:
        Steps done and seconds spent, both 0 at the start of a run.

    Raises:
        UserError: the state is of a model built otherwise.
    """
    if not run.state.exists():
        return 0, 0.0
    state = torch.load(run.state, weights_only=True, map_location="cpu")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, ValueError, RuntimeError):
        mend = f"go on with the version that began it, or {_anew(run.state)}"
        raise UserError(f"{run.state} is of a model built otherwise: {mend}") from None
    return state["step"], state["seconds"]


def _anew(path: Path) -> str:
    return f"choose another --out, or delete {path} to begin anew"


def save_state(run: Run, parts: Mapping[str, Any], step: int, seconds: float) -> None:
    """Saves the state of a run so that an interruption never leaves half a file.

    Args:
        run: which training.
        parts: whatever has a `state_dict`, by name.
        step: steps done.
        seconds: time spent so far.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    with replacing(run.state) as partial:
        torch.save({"seed": run.seed, "step": step, "seconds": seconds} | states, partial)


def finish(run: Run, evaluate: Callable[..., Sequence[Row]], card: str, seconds: float) -> None:
    """Halves the weights of a trained model that lies in its folder, measures it, writes its record and its card, and
    shows its figures.

    Args:
        run: which training.
        evaluate: measures a model folder on scenes and instances never trained on; takes it and a device.
        card: Markdown with places for {table}, {minutes}, {machine}, {seed} and {steps}.
        seconds: training time.
    """
    _halve(run.folder)
    rows = evaluate(run.folder, device=run.device)
    cores = f"{platform.machine()}, {os.cpu_count()} cores, 1 training thread"
    machine, processor = cores, "one processor core"
    if run.device != "cpu":
        on_cuda = run.device.startswith("cuda")
        machine = processor = torch.cuda.get_device_name(run.device) if on_cuda else f"{run.device} of {cores}"
    if run.workers:
        processor += f" and {counted(run.workers, 'worker')}"
    command = f"python -m pekit.sample.train {run.model} --out DIR --steps {run.steps} --seed {run.seed}"
    record = {
        "command": command if run.device == "cpu" else f"{command} --device {run.device}",
        "seed": run.seed,
        "steps": run.steps,
        "minutes": round(seconds / 60, 1),
        "machine": machine,
        "workers": run.workers,
        "torch": torch.__version__,
        "held_out": {row.asked: round(row.value, 4) for row in rows},
    }
    (run.folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    table = "\n".join(f"| {row.asked} | {row.value:.3f} | {row.bound_text} |" for row in rows)
    minutes = round(seconds / 60)
    (run.folder / "README.md").write_text(
        card.format(table=table, seed=run.seed, steps=run.steps, minutes=minutes, machine=processor)
    )
    for row in rows:
        print(f"{row.asked}: {row.value:.3f} ({row.bound_text})")


def _halve(folder: Path) -> None:
    """Stores the weights of a saved model in 16 bits.

    The configuration keeps saying float32, so `from_pretrained` computes in 32 bits as before.

    Args:
        folder: of the model.
    """
    path = folder / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", path)  # safetensors lets nobody but the owner read what it writes
