"""The loss the sample Grounding DINO learns from.

Every stage (encoder proposals, each decoder layer) is taught alike: a true box goes to the few predictions that fit it
best, their scores learn the overlap they reach and all other scores learn zero. A phrase's score is its highest
token's, as it is when prompted.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import GroundingDinoForObjectDetection

_PREDICTIONS_PER_TRUTH = {"encoder": 5, "decoder": 3}
_BOX_WEIGHT, _OVERLAP_WEIGHT = 5.0, 2.0


@dataclass(frozen=True)
class Targets:
    """What a batch of B pictures should yield: at most N objects each, asked about with at most P phrases in L tokens.

    Attributes:
        boxes: float32 (B, N, 4) centre, width and height as shares of the picture; zero where there is no object.
        meant: float32 (B, N, P + 1); 1 where the phrase means the object. The last column stands for the tokens of no
            phrase ([CLS], [SEP]), which never mean any.
        phrases: bool (B, P + 1); columns in use.
        phrase_of_token: int64 (B, L); P for [CLS], [SEP] and padding.
    """

    boxes: Tensor
    meant: Tensor
    phrases: Tensor
    phrase_of_token: Tensor


def stage_losses(
    model: GroundingDinoForObjectDetection, pixels: Tensor, tokens: dict[str, Tensor], targets: Targets
) -> dict[str, Tensor]:
    """Runs the model and judges each of its stages.

    Args:
        model: in training mode.
        pixels: float32 (B, 3, S, S), normalised.
        tokens: the tokenizer's tensors, (B, L) each.
        targets: what the model should find.

    Returns:
        Scalar losses by the name of their stage; their sum is to be minimised.
    """
    out = model.model(pixel_values=pixels, **tokens)
    found = {"encoder": (out.enc_outputs_class, out.enc_outputs_coord_logits.sigmoid())}
    reference = out.init_reference_points
    for layer, hidden in enumerate(out.intermediate_hidden_states.unbind(1)):
        logits = model.class_embed[layer](hidden, out.encoder_last_hidden_state_text, tokens["attention_mask"].bool())
        boxes = (model.bbox_embed[layer](hidden) + torch.special.logit(reference, eps=1e-5)).sigmoid()
        found[f"decoder {layer}"] = logits, boxes
        reference = out.intermediate_reference_points[:, layer]
    return {
        stage: _loss(stage.split()[0], phrase_logits(logits, targets), boxes, targets)
        for stage, (logits, boxes) in found.items()
    }


def phrase_logits(logits: Tensor, targets: Targets) -> Tensor:
    """Takes each phrase's highest token: (B, Q, L) to (B, Q, P + 1), very low where a phrase has none."""
    index = targets.phrase_of_token[:, None].expand(-1, logits.shape[1], -1)
    lowest = logits.new_full((*logits.shape[:2], targets.phrases.shape[1]), -30.0)
    return lowest.scatter_reduce(2, index, logits[..., : index.shape[2]].clamp(min=-30.0), "amax")


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, targets: Targets, per_truth: int) -> Tensor:
    """Gives each object that is meant to the predictions that fit it best.

    Args:
        scores: (B, Q, P + 1) log-sigmoids.
        boxes: (B, Q, 4) centre, width, height.
        targets: the objects.
        per_truth: predictions an object may get; one wanted by several objects goes to the one it fits best.

    Returns:
        int64 (B, Q): index of the object, -1 for none.
    """
    n_meanings = targets.meant.sum(-1)
    score_cost = -torch.einsum("bqp,bnp->bnq", scores, targets.meant) / n_meanings.clamp(min=1)[..., None]
    corner_cost = torch.cdist(targets.boxes, boxes, p=1)
    overlap_cost = 1 - _pairwise_iou(_corners(targets.boxes), _corners(boxes))
    cost = score_cost + _BOX_WEIGHT * corner_cost + 2 * _OVERLAP_WEIGHT * overlap_cost
    wanted = torch.zeros_like(cost, dtype=torch.bool).scatter_(2, cost.topk(per_truth, largest=False).indices, True)
    cost = cost.masked_fill(~wanted | (n_meanings == 0)[..., None], torch.inf)
    best, truth = cost.min(1)
    return truth.masked_fill(best.isinf(), -1)


def _loss(stage: str, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    truth = assign(F.logsigmoid(logits), boxes, targets, _PREDICTIONS_PER_TRUTH[stage])
    picture, prediction = torch.nonzero(truth >= 0, as_tuple=True)
    owner = truth[picture, prediction]
    true_boxes, found_boxes = targets.boxes[picture, owner], boxes[picture, prediction]
    n_matched = max(len(owner), 1)
    distance = F.l1_loss(found_boxes, true_boxes, reduction="sum")
    corners, true_corners = _corners(found_boxes), _corners(true_boxes)
    overlap = generalized_box_iou_loss(corners, true_corners, reduction="sum")
    box_loss = (_BOX_WEIGHT * distance + _OVERLAP_WEIGHT * overlap) / n_matched
    quality = _pairwise_iou(corners.detach()[:, None], true_corners[:, None])[:, 0, 0]
    wanted = torch.zeros_like(logits)
    wanted[picture, prediction] = targets.meant[picture, owner] * quality[:, None]
    weight = torch.where(wanted > 0, 1.0, 0.75 * logits.detach().sigmoid() ** 2) * targets.phrases[:, None]
    score_loss = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum") / n_matched
    return box_loss + score_loss


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Overlaps of (…, N, 4) with (…, M, 4) corners: (…, N, M)."""
    first, second = first[..., :, None, :], second[..., None, :, :]
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(
        min=0
    )
    shared = sides.prod(-1)
    areas = (first[..., 2:] - first[..., :2]).prod(-1) + (second[..., 2:] - second[..., :2]).prod(-1)
    return shared / (areas - shared).clamp(min=1e-9)
