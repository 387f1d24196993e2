"""How well the sample SAM cuts out objects it was never trained on, at the pipeline's settings."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pekit.regions import Segmenter
from pekit.sample.drawing import random_scene
from pekit.sample.evaluate import Row

SIDE = 518


def evaluate(folder: Path, seed: int = 2024, n_scenes: int = 100, device: str = "cpu") -> list[Row]:
    """Measures masks cut out of true boxes.

    Args:
        folder: model folder.
        seed: of the held-out scenes.
        n_scenes: scenes to draw, of one to five objects.
        device: torch device of the model.

    Returns:
        Mean IoU with the visible pixels, and how far it lies above that of the filled box.
    """
    segmenter = Segmenter(str(folder), SIDE, torch.device(device), torch.float32)
    rng = np.random.default_rng(seed)
    cut, filled = [], []
    for _ in range(n_scenes):
        scene = random_scene(rng, size=(256, 256), pool="heldout")
        picture = Image.fromarray(scene.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        boxes = np.stack([thing.box_xyxy for thing in scene.objects]) * np.float32(SIDE / 256)
        pictures = [segmenter.prepare(picture)] * len(boxes)
        for mask, box, thing in zip(segmenter.cut(pictures, boxes), boxes, scene.objects, strict=True):
            truth = np.asarray(Image.fromarray(thing.mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
            x1, y1, x2, y2 = box.round().astype(int)
            cut.append((mask & truth).sum() / (mask | truth).sum())
            filled.append(truth.sum() / ((x2 - x1) * (y2 - y1)))
    gain = float(np.mean(cut) - np.mean(filled))
    return [
        Row("SAM", "mask from a true box, mean IoU", float(np.mean(cut)), 0.85, True, len(cut)),
        Row("SAM", "mask from a true box, mean IoU above the filled box's", gain, 0.15, True, len(cut)),
    ]
