"""The sample DINOv2: a small Dinov2Model and its image processor, untrained, in the format `from_pretrained` reads."""

import math
from typing import Any, cast

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

WIDTH = 128
POSITION_CHANNELS = 32
SHARPNESS = 3.5
IMAGE_SIZE = 518
PATCH_SIZE = 14


def build_model(seed: int) -> Dinov2Model:
    """Builds the untrained model from random weights of a seed."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
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
        look_at_neighbours(model)
    return model


def build_processor() -> BitImageProcessor:
    """Builds the image processor: squash to 518 px, ImageNet mean and deviation."""
    return BitImageProcessor(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def look_at_neighbours(model: Dinov2Model) -> None:
    """Start a model out as a convolution: each attention head looks at the patch at a fixed offset.

    A transformer finds out by itself that pictures are made of neighbourhoods, but takes far more pictures to do so
    than are drawn here. Positions get channels of their own; in them, a step to a neighbour is a rotation, which the
    keys of each head undo.

    Args:
        model: changed in place; its heads are `POSITION_CHANNELS` wide.
    """
    side, n_axis = IMAGE_SIZE // PATCH_SIZE, POSITION_CHANNELS // 4
    steps = torch.logspace(math.log10(math.pi / 2), math.log10(math.pi / side), n_axis)  # radians a patch
    angles = torch.arange(side)[:, None] * steps
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    embeddings = model.embeddings
    embeddings.position_embeddings.zero_()
    embeddings.position_embeddings[0, 1:, :POSITION_CHANNELS] = torch.cat([rows, columns], dim=2).flatten(0, 1)
    embeddings.patch_embeddings.projection.weight[:POSITION_CHANNELS] = 0
    for number, layer in enumerate(cast(Any, model.encoder.layer)):
        reach = 1 + number // 2
        offsets = [(0, 1), (0, -1), (1, 0), (-1, 0)] if number % 2 == 0 else [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        query, key, _, output = attention_weights(layer)
        for head, (down, right) in enumerate(offsets):
            own = slice(head * POSITION_CHANNELS, (head + 1) * POSITION_CHANNELS)
            query[own], key[own] = 0, 0
            query[own, :POSITION_CHANNELS] = SHARPNESS * torch.eye(POSITION_CHANNELS)
            turns = [_rotation(steps * reach * distance) for distance in (down, right)]
            key[own, :POSITION_CHANNELS] = SHARPNESS * torch.block_diag(*turns)
        output[:POSITION_CHANNELS] = 0
        layer.mlp.fc2.weight[:POSITION_CHANNELS] = 0


def attention_weights(layer: torch.nn.Module) -> list[torch.Tensor]:
    """Weights of the query, the key, the value and the output of a DINOv2 layer, in this order.

    Releases of transformers differ in the names of these, not in their order.
    """
    attention = layer.get_submodule("attention")
    return [part.weight for part in attention.modules() if isinstance(part, torch.nn.Linear)]


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """What turns (sin a, cos a) into (sin(a - angle), cos(a - angle)) for each of n angles: (2n, 2n)."""
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


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
