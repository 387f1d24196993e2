"""Regions by open-vocabulary detection and segmentation: Grounding DINO and SAM (method, steps 2 and 4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes
from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer, SamModel
from transformers.image_transforms import center_to_corners_format

from pekit.features import PictureInput, normalised
from pekit.hub import ROLES, find_checkpoint
from pekit.records import NOT_FINITE, Regions, UserError

log = logging.getLogger(__name__)

PROPOSAL_PROMPT = "object."
PROPOSAL_SCORE = 0.01
AUTOMATIC_MASK_IOU = 0.95


@dataclass(frozen=True)
class Found:
    """What Grounding DINO gives for B pictures, on its device: reading it waits for the model.

    Attributes:
        boxes_xyxy: f32 (B, Q, 4), px of the S x S picture.
        scores: f32 (B, Q), the largest sigmoid over the text tokens.
    """

    boxes_xyxy: torch.Tensor
    scores: torch.Tensor

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        boxes, scores = self.boxes_xyxy.cpu().numpy(), self.scores.cpu().numpy()
        if np.isnan(scores).any() or np.isnan(boxes).any():  # else they would read as nothing found
            raise UserError(f"Grounding DINO gives numbers that are {NOT_FINITE}")
        return boxes, scores

    def top(self) -> list[Regions]:
        """Of each picture the highest-scoring box, however low its score: B Regions of one box (M = 1).

        Raises:
            UserError: the model's numbers are not finite.
        """
        boxes, scores = self._read()
        best = scores.argmax(1)
        return [Regions(b[[i]], s[[i]]) for b, s, i in zip(boxes, scores, best, strict=True)]

    def proposals(self) -> list[Regions]:
        """Of each picture every box that scores above 0.01, in the detector's order: B Regions, M differing.

        Raises:
            UserError: the model's numbers are not finite.
        """
        boxes, scores = self._read()
        keep = scores > PROPOSAL_SCORE
        return [Regions(b[k], s[k]) for b, s, k in zip(boxes, scores, keep, strict=True)]


class Grounder:
    """Grounding DINO: squashed pictures and words to scored boxes.

    ``prepare`` makes its input of a picture from ``photos.open_image`` and ``photos.squash``.

    Args:
        source: checkpoint, as ``--grounding_model`` takes it.
        size: side S of the squashed picture in px.
        device, dtype: where and in which number format the model runs; on CPUs in fp32, whatever is asked for.

    Raises:
        UserError: the checkpoint cannot be loaded or used.
    """

    def __init__(self, source: str, size: int, device: torch.device, dtype: torch.dtype) -> None:
        if device.type == "cpu" and dtype != torch.float32:
            # torch's grid_sample of 16-bit numbers reads past the maps that a batch of one gives it there
            log.warning("on a CPU Grounding DINO runs in float32: its boxes would be wrong in 16 bits")
            dtype = torch.float32
        checkpoint = find_checkpoint(source, *ROLES["grounding"])
        self.prepare = PictureInput(checkpoint)
        self._tokenizer = checkpoint.part(AutoTokenizer)
        self.model = checkpoint.load(AutoModelForZeroShotObjectDetection, dtype=dtype).to(device)
        self._size, self.device = size, device
        self._most_words = checkpoint.config.max_text_len
        self.levels = self.prepare.levels.to(device, dtype)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[torch.Tensor], prompts: Sequence[str] | None = None) -> Found:
        """Find what each prompt names.

        Args:
            pictures: B of u8 (3, h, w), prepared by ``prepare``.
            prompts: B prompts, each closed with a full stop; of any object ("object.") where left out.
        """
        asked = prompts or [PROPOSAL_PROMPT] * len(pictures)
        words: Any = self._tokenizer(list(asked), padding=True, return_tensors="pt").to(self.device)
        if words["input_ids"].shape[1] > self._most_words:
            raise UserError(
                f"'{max(asked, key=len)}' is more than the {self._most_words} words or parts of words that "
                "--grounding_model reads: give the concept's folder a shorter name"
            )
        output = self.model(pixel_values=normalised(pictures, self.levels), **words)
        boxes: Any = center_to_corners_format(output.pred_boxes.float()) * self._size
        return Found(boxes, output.logits.float().sigmoid().amax(-1))

    def ground(self, pictures: Sequence[torch.Tensor], prompts: Sequence[str]) -> list[Regions]:
        """``detect`` the one region that each prompt names."""
        return self.detect(pictures, prompts).top()

    def propose(self, pictures: Sequence[torch.Tensor]) -> list[Regions]:
        """``detect`` regions of any object."""
        return self.detect(pictures).proposals()


class Segmenter:
    """SAM: masks from boxes, or of everything.

    ``prepare`` makes its input of a picture from ``photos.open_image`` and ``photos.squash``.

    Args:
        source: checkpoint, as ``--sam_model`` takes it.
        size: side S of the squashed picture in px.
        device, dtype: where and in which number format the model runs.

    Raises:
        UserError: the checkpoint cannot be loaded or used.
    """

    def __init__(self, source: str, size: int, device: torch.device, dtype: torch.dtype) -> None:
        checkpoint = find_checkpoint(source, *ROLES["masks"])
        self.prepare = PictureInput(checkpoint)
        self.model = checkpoint.load(SamModel, dtype=dtype).to(device)
        # the library's selection of automatic masks does not take scores of 16 bits
        self.model.register_forward_hook(_scores_in_fp32)
        self._size, self.device, self.dtype = size, device, dtype
        self.levels = self.prepare.levels.to(device, dtype)

    @torch.inference_mode()
    def cut(self, pictures: Sequence[torch.Tensor], boxes_xyxy: np.ndarray) -> np.ndarray:
        """Cut out what one box of each picture holds.

        Args:
            pictures: B of u8 (3, h, w), prepared by ``prepare``.
            boxes_xyxy: f32 (B, 4), px of the S x S picture, neither rounded nor clamped.

        Returns:
            bool (B, S, S), of the three masks the one with the best predicted IoU.

        Raises:
            UserError: the model's numbers are not finite.
        """
        side = self.prepare.processor.size["longest_edge"]  # squashed pictures are square
        boxes = torch.from_numpy(boxes_xyxy).to(self.device, torch.float32) * (side / self._size)
        output = self.model(
            pixel_values=normalised(pictures, self.levels),
            input_boxes=boxes[:, None],  # in fp32: the model scales them to [0, 1] before it takes them to 16 bits
            multimask_output=True,
        )
        if output.iou_scores.isnan().any():  # else the masks would be empty
            raise UserError(f"SAM gives numbers that are {NOT_FINITE}")
        best = output.iou_scores[:, 0].argmax(-1)
        chosen = output.pred_masks[torch.arange(len(best), device=best.device), 0, best].float()
        count = len(chosen)
        masks = self.prepare.processor.post_process_masks(
            chosen[:, None, None].cpu(), [(self._size, self._size)] * count, [(side, side)] * count
        )
        return torch.stack([mask[0, 0] for mask in masks]).numpy()

    @torch.inference_mode()
    def everything(self, picture: Image.Image, min_area: int) -> Regions:
        """SAM's automatic masks of a squashed picture: predicted IoU above 0.95, smaller masks dropped.

        Args:
            picture: RGB, S x S.
            min_area: masks of fewer pixels are dropped.

        Returns:
            Regions with masks; boxes are the tight boxes, corners past the last pixel.
        """
        from transformers import pipeline

        generate: Any = pipeline(  # type: ignore[call-overload]
            "mask-generation",
            model=self.model,
            image_processor=self.prepare.processor,
            device=self.device,
            dtype=self.dtype,
        )
        found = generate(picture, points_per_batch=64, pred_iou_thresh=AUTOMATIC_MASK_IOU)
        masks = np.array([np.asarray(mask, dtype=bool) for mask in found["masks"]], dtype=bool)
        masks = masks.reshape(-1, self._size, self._size)
        scores = np.asarray([float(score) for score in found["scores"]], dtype=np.float32)
        keep = masks.sum((1, 2)) >= max(min_area, 1)
        last_pixels = masks_to_boxes(torch.from_numpy(masks[keep]))
        boxes = last_pixels + torch.tensor([0, 0, 1, 1])
        return Regions(boxes.numpy(), scores[keep], masks[keep])


def _scores_in_fp32(_model: SamModel, _inputs: tuple, output: Any) -> Any:
    output.iou_scores = output.iou_scores.float()
    return output
