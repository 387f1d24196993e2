"""Checkpoints of the paper's sizes with random weights, built from the published configurations; no download."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    Dinov2Config,
    Dinov2Model,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

WORDS = ("object", "my", "red", "mug")
# Model set -> Swin of Grounding DINO, DINOv2
SIZES: dict[str, tuple[dict, dict]] = {
    "paper": (
        {"image_size": 384, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "small": (
        {"image_size": 224, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
}


def _tokenizer() -> BertTokenizer:
    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    fixed |= {2000 + i: word for i, word in enumerate(WORDS)}
    return BertTokenizer(vocab={fixed.get(i, f"[unused{i}]"): i for i in range(30522)})


def build(folder: Path, models: str = "paper") -> Path:
    """Write Grounding DINO and DINOv2 of a model set's sizes with random weights.

    Args:
        folder: gets grounding/ and features/, as ``--models FOLDER`` reads them.
        models: "paper" (grounding-dino-base, dinov2-large) or "small" (grounding-dino-tiny, dinov2-base).
    """
    torch.manual_seed(0)
    swin, dino = SIZES[models]
    backbone = SwinConfig(**swin, out_indices=[2, 3, 4])
    for part in (
        GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone)),
        GroundingDinoImageProcessorPil(),
        _tokenizer(),
    ):
        part.save_pretrained(folder / "grounding")
    for part in (
        Dinov2Model(Dinov2Config(**dino, image_size=518, patch_size=14)),
        BitImageProcessorPil(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD),
    ):
        part.save_pretrained(folder / "features")
    return folder
