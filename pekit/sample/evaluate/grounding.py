"""How well the sample Grounding DINO finds held-out objects, at the scripts' own settings."""

from pathlib import Path

import numpy as np
import torch
from pekit.sample.drawing import CATEGORIES, draw_scene, random_instance, random_scene
from PIL import Image
from torchvision.ops import box_convert, box_iou
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from pekit.sample.evaluate import Row

SQUASHED = 518
PROPOSAL_THRESHOLD = 0.01
_PHOTO_SIZES = ((256, 256), (320, 240), (240, 320))
_NAMES = ("", "noras ", "my ", "polka ", "belas_", "tims {noun} ")


class Detector:
    """The checkpoint behind one call, independent of the package's own region code."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")

    @torch.no_grad()
    def __call__(self, photo: np.ndarray, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Looks for the prompt in a photo.

        Args:
            photo: uint8 (H, W, 3) RGB.
            prompt: such as "object.".

        Returns:
            Corners (Q, 4) as shares of the photo, and scores (Q,).
        """
        squashed = Image.fromarray(photo).resize((SQUASHED, SQUASHED), Image.Resampling.BILINEAR)
        out = self.model(**self.processor(images=squashed, text=prompt, return_tensors="pt"))
        return box_convert(out.pred_boxes[0], "cxcywh", "xyxy"), out.logits[0].sigmoid().max(-1).values


def evaluate(folder: Path, seed: int = 2024, n_photos: int = 300) -> list[Row]:
    """Measures coverage by proposals and the category prompt.

    Args:
        folder: model folder.
        seed: of the scenes.
        n_photos: drawn for each of the two figures.

    Returns:
        The two rows of the table.
    """
    detector = Detector(folder)
    coverage = proposal_coverage(detector, np.random.default_rng([seed, 0]), n_photos)
    hits = reference_hits(detector, np.random.default_rng([seed, 1]), n_photos)
    name = "Grounding DINO"
    return [
        Row(name, '"object." proposals cover an object', float(np.mean(coverage)), 0.95, True, len(coverage)),
        Row(name, "top box of the category prompt on a reference photo", float(np.mean(hits)), 0.90, True, len(hits)),
    ]


def proposal_coverage(detector: Detector, rng: np.random.Generator, n_photos: int) -> list[bool]:
    """Tells for each object of random held-out scenes whether a kept proposal overlaps it by half."""
    covered: list[bool] = []
    for index in range(n_photos):
        size = _PHOTO_SIZES[index % len(_PHOTO_SIZES)]
        scene = random_scene(rng, size=size, pool="heldout")
        boxes, scores = detector(scene.image, "object.")
        truths = _shares(np.stack([drawn.box_xyxy for drawn in scene.objects]), size)
        overlaps = box_iou(truths, boxes[scores > PROPOSAL_THRESHOLD])
        covered += [bool(row.ge(0.5).any()) for row in overlaps]
    return covered


def reference_hits(detector: Detector, rng: np.random.Generator, n_photos: int) -> list[bool]:
    """Tells for each held-out reference photo whether the category prompt's best box overlaps its main object by half.

    Two photos of five show an object of another category as well.
    """
    hits = []
    for index in range(n_photos):
        size = _PHOTO_SIZES[index % len(_PHOTO_SIZES)]
        main = random_instance(rng, pool="heldout")
        company = []
        if rng.random() < 0.4:
            others = [category for category in CATEGORIES if category != main.category]
            company.append(random_instance(rng, str(rng.choice(others)), "heldout"))
        scene = draw_scene(rng, [main, *company], size)
        noun = main.category.lower().replace("-", " ")
        name = str(rng.choice(_NAMES)).format(noun=noun)
        boxes, scores = detector(scene.image, f"{name}{noun}.")
        truth = _shares(scene.objects[0].box_xyxy[None], size)
        hits.append(bool(box_iou(truth, boxes[scores.argmax()][None]) >= 0.5))
    return hits


def _shares(boxes: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(boxes) / torch.tensor([*size, *size])
