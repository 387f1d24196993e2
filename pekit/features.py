"""DINOv2 patch grids, and pooling patches under boxes and masks (method, step 3).

A patch (i, j) belongs to a region when the region holds pixel (p·i, p·j). A box therefore selects a rectangle of the
grid, and its mean follows from prefix sums of the grid's columns; no box is ever drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import embedding_bag
from transformers import AutoImageProcessor, AutoModel

from pekit.hub import ROLES, Checkpoint, find_checkpoint
from pekit.records import UserError


class PatchFeatures:
    """DINOv2 as a function from squashed pictures to patch grids.

    ``prepare`` makes its input of a picture from ``photos.open_image`` and ``photos.squash``.

    Args:
        source: checkpoint, as ``--dino_model`` takes it.
        size: side S of the squashed picture in px; a multiple of the model's patch size.
        device, dtype: where and in which number format the model runs.

    Raises:
        UserError: the checkpoint cannot be loaded or used, or S is not a multiple of its patch size.
    """

    def __init__(self, source: str, size: int, device: torch.device, dtype: torch.dtype) -> None:
        checkpoint = find_checkpoint(source, *ROLES["features"])
        config = checkpoint.config
        self.patch = int(config.patch_size)
        if size % self.patch:
            raise UserError(
                f"--dino_img_size {size} is not a multiple of the model's patch size: "
                f"take {max(size // self.patch, 1) * self.patch}"
            )
        self.grid, self.width = size // self.patch, int(config.hidden_size)
        self._skip = 1 + getattr(config, "num_register_tokens", 0)  # class token, registers
        self.prepare = PictureInput(checkpoint, keep_size=True)
        self.model = checkpoint.load(AutoModel, dtype=dtype).to(device)
        self.levels = self.prepare.levels.to(device, dtype)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute patch grids.

        Args:
            pictures: B of u8 (3, S, S), prepared by ``prepare``.

        Returns:
            f32 (B, G, G, D), the layer-normed patch tokens, on the model's device.
        """
        tokens = self.model(pixel_values=normalised(pictures, self.levels)).last_hidden_state[:, self._skip :]
        return tokens.float().reshape(len(tokens), self.grid, self.grid, -1)


class PictureInput:
    """A model's own image processor in two steps; small and picklable, so loader workers can hold it.

    The first, for the workers, gives the picture the model's size. The second, where the model runs, scales and
    normalises. The processor does that to each value by itself, so it is asked once what becomes of the 256 there are:
    its own numbers bit for bit, while pictures travel in a quarter of the bytes.

    Args:
        checkpoint: whose image processor it is, on the Pillow backend (the resampling of the published code).
        keep_size: leave out resizing and cropping.

    Attributes:
        processor: the processor.
        levels: f32 (3, 256), what the processor makes of each value of each channel.

    Raises:
        UserError: the processor does more than that.
    """

    def __init__(self, checkpoint: Checkpoint, keep_size: bool = False) -> None:
        self.processor = checkpoint.part(AutoImageProcessor, backend="pil")
        self._options = {"do_resize": False, "do_center_crop": False} if keep_size else {}
        values = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
        plain = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        self.levels = torch.from_numpy(self._values(values, np.float32, **plain).reshape(3, 256))
        whole = torch.from_numpy(self._values(values, np.float32, **self._options))
        if not torch.equal(normalised([self(values)], self.levels)[0], whole):
            raise UserError(
                f"{checkpoint.option} {checkpoint.source}: its image processor does more with a square picture than "
                "resize, crop and normalise it; give a checkpoint whose processor does only that"
            )

    def _values(self, picture: Image.Image, dtype: type, **options: bool) -> np.ndarray:
        values = self.processor(images=picture, return_tensors="np", **options)["pixel_values"][0]
        return np.ascontiguousarray(values, dtype=dtype)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        """u8 (3, h, w) of a square RGB picture."""
        return torch.from_numpy(self._values(picture, np.uint8, do_rescale=False, do_normalize=False, **self._options))


def normalised(pictures: Sequence[torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    """Make a model's input of prepared pictures.

    Args:
        pictures: B of u8 (3, h, w), from a ``PictureInput``.
        levels: (3, 256), its levels on the model's device and in its number format.

    Returns:
        (B, 3, h, w), on that device and in that format.
    """
    values = torch.stack([picture.to(levels.device, non_blocking=True) for picture in pictures])
    return torch.stack([own[channel.long()] for own, channel in zip(levels, values.unbind(1), strict=True)], dim=1)


def pixel_boxes(boxes_xyxy: np.ndarray, size: int) -> np.ndarray:
    """Truncate corners to whole pixels and clamp them to the picture.

    Args:
        boxes_xyxy: float (M, 4), px of the S x S picture.
        size: S.

    Returns:
        int64 (M, 4); the box fills pixels x0 <= x < x1, y0 <= y < y1, none where x1 <= x0 or y1 <= y0.
    """
    return np.clip(np.trunc(boxes_xyxy).astype(np.int64), 0, size)


def patch_rectangles(boxes: np.ndarray, patch: int) -> np.ndarray:
    """The grid rectangles whose sampled pixels lie in filled boxes.

    Args:
        boxes: int (M, 4), from ``pixel_boxes``.
        patch: p in px.

    Returns:
        int64 (M, 4): first and past-the-end column and row, as xyxy; empty where a box holds no sampled pixel.
    """
    return -(-boxes // patch)  # pixel p·j lies in [x0, x1) exactly for j in [ceil(x0/p), ceil(x1/p))


def sampled(masks: np.ndarray, patch: int) -> np.ndarray:
    """Which patches belong to masks: bool (M, S, S) -> bool (M, G, G), the masks at pixels (p·i, p·j)."""
    return masks[:, ::patch, ::patch]


def pool_boxes(grid: torch.Tensor, rectangles: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Mean patch feature in each grid rectangle.

    Equal rectangles share one descriptor bit for bit, so ties stay ties.

    Args:
        grid: f32 (G, G, D).
        rectangles: int (M, 4), from ``patch_rectangles``.

    Returns:
        descriptors f32 (U, D) of the U different non-empty rectangles in the order of their first, on the grid's
        device, and which int64 (M,), the descriptor of each rectangle, -1 for an empty one.
    """
    filled = (rectangles[:, 2] > rectangles[:, 0]) & (rectangles[:, 3] > rectangles[:, 1])
    which = np.full(len(rectangles), -1, dtype=np.int64)
    if not filled.any():
        return grid.new_zeros((0, grid.shape[-1])), which
    corners = rectangles[filled]
    keys = np.ravel_multi_index(corners.T, (len(grid) + 1,) * 4)
    first, which[filled] = _different(keys)
    # A column of a rectangle is the difference of two prefix sums, so one of w columns is a weighted sum of 2·w table
    # entries. A two-way table needs only four, but in fp64 (its large sums cancel); this is faster and as exact.
    centre = grid.mean((0, 1))  # channels far from zero would lose digits in the sums
    x0, y0, x1, y1 = corners[first].T
    widths = x1 - x0
    starts = np.cumsum(widths) - widths
    box = np.repeat(np.arange(len(first)), widths)
    column = np.arange(widths.sum()) - starts[box] + x0[box]
    entries = np.stack([y1[box] * grid.shape[1] + column, y0[box] * grid.shape[1] + column], axis=1).ravel()
    signs = grid.new_ones((len(column), 2))
    signs[:, 1] = -1
    total = embedding_bag(
        torch.from_numpy(entries).to(grid.device),
        _prefix_sums(grid, centre).flatten(0, 1),
        torch.from_numpy(2 * starts).to(grid.device),
        mode="sum",
        per_sample_weights=signs.flatten(),
    )
    areas = torch.from_numpy((widths * (y1 - y0)).astype(np.float32)).to(grid.device)
    return total.div_(areas[:, None]).add_(centre), which


def _different(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each different key of N is first, in that order, and which of them each key is: int64 (U,), int64 (N,)."""
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which.reshape(-1)]  # numpy 2.0.0 gives a column


def _prefix_sums(grid: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Sums down each column of grid - centre: f32 (G, G, D), (D,) -> (G + 1, G, D), entry i of the first i patches."""
    table = grid.new_zeros((grid.shape[0] + 1, *grid.shape[1:]))
    torch.sub(grid, centre, out=table[1:])
    if grid.device.type == "cpu":  # cumsum is several times slower there
        for above, row in pairwise(table):
            row += above
    else:
        table[1:] = table[1:].cumsum(0)
    return table


def pool_masks(grid: torch.Tensor, members: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Mean patch feature under each mask, as one product with the 0/1 membership matrix.

    Equal masks share one descriptor, as in ``pool_boxes``.

    Args:
        grid: f32 (G, G, D).
        members: bool (M, G, G), from ``sampled``.

    Returns:
        descriptors f32 (U, D) of the U different masks that have patches, in the order of their first, on the grid's
        device, and which int64 (M,), the descriptor of each mask, -1 for one without patches.
    """
    flat = members.reshape(len(members), grid.shape[0] * grid.shape[1])
    filled = flat.any(1)
    which = np.full(len(flat), -1, dtype=np.int64)
    first, which[filled] = _different(np.packbits(flat[filled], axis=1))
    chosen = torch.from_numpy(flat[filled][first]).to(grid.device, grid.dtype)
    total = chosen @ grid.reshape(-1, grid.shape[-1])
    return total / chosen.sum(1, keepdim=True), which


def patches_under(grid: torch.Tensor, member: np.ndarray) -> np.ndarray:
    """The patch features of one region in reading order: (G, G, D) and bool (G, G) -> f32 (P, D) numpy."""
    return grid[torch.from_numpy(member).to(grid.device)].cpu().numpy()


def rectangle_members(rectangles: np.ndarray, grid: int) -> np.ndarray:
    """Which patches belong to grid rectangles: int (M, 4) -> bool (M, G, G)."""
    x0, y0, x1, y1 = rectangles[:, :, None].transpose(1, 0, 2)
    i = np.arange(grid)
    return ((y0 <= i) & (i < y1))[:, :, None] & ((x0 <= i) & (i < x1))[:, None]
