"""The method once more, written slowly and plainly from its description: loops, drawn masks, one picture at a time.

Tests compare the package with these; nothing here imports it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    SamModel,
    SamProcessor,
)


def squash(path: Path, size: int) -> Image.Image:
    """Decode to RGB and squash the whole photo, aspect ratio not kept."""
    return Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


# --- models, one picture at a time ---------------------------------------------------------------------------------


class Models:
    """The three checkpoints of a folder, driven by the library's own processors."""

    def __init__(self, folder: Path) -> None:
        self.words = AutoProcessor.from_pretrained(folder / "grounding", backend="pil")
        self.grounding = AutoModelForZeroShotObjectDetection.from_pretrained(folder / "grounding").eval()
        self.sam_words = SamProcessor.from_pretrained(folder / "masks", backend="pil")
        self.sam = SamModel.from_pretrained(folder / "masks").eval()
        self.pixels = AutoImageProcessor.from_pretrained(folder / "features", backend="pil")
        self.dino = AutoModel.from_pretrained(folder / "features").eval()
        self.patch = self.dino.config.patch_size

    @torch.no_grad()
    def boxes(self, picture: Image.Image, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """All boxes (Q, 4) in px of the picture and their scores, in the detector's order."""
        inputs = self.words(images=picture, text=prompt, return_tensors="pt")
        outputs = self.grounding(**inputs)
        found = self.words.post_process_grounded_object_detection(
            outputs, inputs.input_ids, threshold=0.0, text_threshold=0.0, target_sizes=[picture.size[::-1]]
        )[0]
        return found["boxes"].numpy(), found["scores"].numpy()

    @torch.no_grad()
    def three_masks(self, picture: Image.Image, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SAM's three masks (3, S, S) for a box and their predicted IoU."""
        inputs = self.sam_words(picture, input_boxes=[[[float(v) for v in box]]], return_tensors="pt")
        outputs = self.sam(
            pixel_values=inputs["pixel_values"].float(),
            input_boxes=inputs["input_boxes"].float(),
            multimask_output=True,
        )
        masks = self.sam_words.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0][0]
        return masks.numpy(), outputs.iou_scores[0, 0].numpy()

    @torch.no_grad()
    def grid(self, picture: Image.Image) -> np.ndarray:
        """The layer-normed patch tokens (G, G, D)."""
        inputs = self.pixels(picture, do_resize=False, do_center_crop=False, return_tensors="pt")
        tokens = self.dino(**inputs).last_hidden_state[0, 1:]
        side = picture.size[0] // self.patch
        return tokens.reshape(side, side, -1).numpy()


# --- regions and patches -------------------------------------------------------------------------------------------


def box_mask(box: np.ndarray, size: int) -> np.ndarray:
    """Draw a filled box: corners cut to whole numbers and pushed back into the picture."""
    mask = np.zeros((size, size), dtype=bool)
    x0, y0, x1, y1 = (min(max(int(corner), 0), size) for corner in box)
    mask[y0:y1, x0:x1] = True
    return mask


def patches(mask: np.ndarray, grid: np.ndarray, patch: int) -> np.ndarray:
    """The grid cells whose first pixel is set in the mask, in reading order: (P, D)."""
    found = []
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            if mask[patch * i, patch * j]:
                found.append(grid[i, j])
    return np.array(found, dtype=np.float32).reshape(-1, grid.shape[2])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((a * b).sum() / math.sqrt((a * a).sum()) / math.sqrt((b * b).sum()))


def tight_box(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


# --- retrieval -----------------------------------------------------------------------------------------------------


def detections(
    masks: list[np.ndarray],
    descriptors: list[np.ndarray | None],
    views: dict[str, list[np.ndarray]],
    threshold: float,
) -> dict[str, tuple[float, list[float]]]:
    """Concept -> score and relative box: argmax, strict threshold, union of the regions, mean of the similarities."""
    named: dict[str, list[tuple[float, np.ndarray]]] = {}
    for mask, descriptor in zip(masks, descriptors, strict=True):
        if descriptor is None:
            continue
        best, name = -2.0, ""
        for concept, own in views.items():
            for view in own:
                similarity = cosine(descriptor, view)
                if similarity > best:
                    best, name = similarity, concept
        if best > threshold:
            named.setdefault(name, []).append((best, mask))
    result = {}
    for name, members in named.items():
        union = np.zeros_like(members[0][1])
        for _, mask in members:
            union |= mask
        score = sum(similarity for similarity, _ in members) / len(members)
        result[name] = (score, [corner / len(union) for corner in tight_box(union)])
    return result


# --- metrics -------------------------------------------------------------------------------------------------------


def ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def unit_metrics(truth: list[bool], found: list[bool]) -> dict[str, float]:
    """The four metrics of one unit, photo by photo."""
    gt = detected = correct = gt_neg = detected_neg = correct_neg = 0
    for shown, named in zip(truth, found, strict=True):
        gt += shown
        detected += named
        correct += shown and named
        gt_neg += not shown
        detected_neg += not named
        correct_neg += not shown and not named
    return {
        "precision": ratio(correct, detected),
        "recall": ratio(correct, gt),
        "neg_precision": ratio(correct_neg, detected_neg),
        "neg_recall": ratio(correct_neg, gt_neg),
    }
