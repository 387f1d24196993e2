"""Architectures of the sample checkpoints: real transformers classes, small enough to train on a processor core."""

from importlib import import_module
from pathlib import Path

from pekit.records import UserError


def build_models(out: Path, seed: int) -> None:
    """Writes an untrained model of every kind, as `from_pretrained` reads them.

    Args:
        out: receives the folders grounding, features, masks and lvlm.
        seed: of the random weights.

    Raises:
        UserError: one of them is there, and may be a trained one.
    """
    names = ("grounding", "features", "masks", "lvlm")
    for name in names:
        if (out / name / "model.safetensors").exists():
            raise UserError(f"{out / name} holds a model: name another folder, or remove it")
    for name in names:
        module = import_module(f"pekit.sample.models.{name}")
        getattr(module, f"build_{name}")(out / name, seed)
