"""Architectures of the sample checkpoints: real transformers classes, small enough to train on a processor core."""

from importlib import import_module
from pathlib import Path


def build_models(out: Path, seed: int) -> None:
    """Writes an untrained model of every kind, as `from_pretrained` reads them.

    Args:
        out: receives the folders grounding, features, masks and lvlm.
        seed: of the random weights.
    """
    for name in ("grounding", "features", "masks", "lvlm"):
        try:
            module = import_module(f"pekit.sample.models.{name}")
        except ModuleNotFoundError:
            continue
        getattr(module, f"build_{name}")(out / name, seed)
