"""Architectures of the sample checkpoints: real transformers classes, small enough to train on a processor core."""

from importlib import import_module
from pathlib import Path

from pekit.records import UserError

KINDS = ("grounding", "features", "masks", "lvlm")  # each has a module here with build_model and build_processor


def write_models(out: Path, seed: int) -> None:
    """Writes an untrained model of every kind.

    Args:
        out: receives a folder for each kind.
        seed: of the random weights.

    Raises:
        UserError: one of them is there, and may be a trained one.
    """
    for kind in KINDS:
        if (out / kind / "model.safetensors").exists():
            raise UserError(f"{out / kind} holds a model: name another folder, or remove it")
    for kind in KINDS:
        write_model(kind, out / kind, seed)


def write_model(kind: str, folder: Path, seed: int) -> None:
    """Writes an untrained model with its processor, as `from_pretrained` reads them; one seed, the same weights."""
    module = import_module(f"pekit.sample.models.{kind}")
    module.build_model(seed).save_pretrained(folder)
    module.build_processor().save_pretrained(folder)
