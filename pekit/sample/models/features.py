"""The sample DINOv2: a small Dinov2Model and its image processor, untrained, in the format `from_pretrained` reads."""

from pathlib import Path

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

WIDTH = 96
IMAGE_SIZE = 224
PATCH_SIZE = 14


def build_features(out: Path, seed: int) -> None:
    """Writes an untrained sample DINOv2 and its image processor.

    Args:
        out: folder to write config.json, model.safetensors and preprocessor_config.json to; created when missing.
        seed: the same seed gives the same weights.
    """
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=3,
        mlp_ratio=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        use_mask_token=False,
        initializer_range=0.08,  # the default suits eight times the width: attention would stay flat for long
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Dinov2Model(config)
    with torch.no_grad():
        side = IMAGE_SIZE // PATCH_SIZE
        # Patches that know from the start where they are learn to look at their neighbours far sooner.
        model.embeddings.position_embeddings[:, 1:] = sine_positions(side, WIDTH)
    model.save_pretrained(out)
    BitImageProcessor(
        do_resize=True,
        size={"height": 518, "width": 518},
        resample=2,
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(out)


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Sine and cosine of the row and the column of each cell of a square grid, at geometrically spaced frequencies.

    Args:
        side: cells in a row.
        width: channels, a multiple of 4.

    Returns:
        (1, side * side, width), row by row, in [-1, 1]; depends on the place relative to the picture, not on `side`.
    """
    place = (torch.arange(side) + 0.5) / side
    angles = place[:, None] * torch.pi * torch.logspace(0, 4, width // 4, base=2.0)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = waves[:, None].expand(-1, side, -1)
    columns = waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(1, side * side, width)
