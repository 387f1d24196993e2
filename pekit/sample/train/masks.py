"""Trains the sample SAM on drawn scenes: a box or a point on an object must give the object's visible pixels."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import normalize
from transformers import SamModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pekit.sample.evaluate.masks import evaluate
from pekit.sample.models.masks import DECODER_WIDTH, IMAGE_SIZE, build_model, build_processor
from pekit.sample.train.optimisers import Optimisers
from pekit.sample.train.regions import jitter
from pekit.sample.train.runs import Run, begin, finish, moved, take_steps
from pekit.sample.train.scenes import DETAILED, SceneBank, augment, open_bank

STEPS = 7800
LEARNING_RATE = 1.5e-3
SCENES_PER_STEP = 10
PROMPTS_PER_SCENE = 3


@dataclass(frozen=True)
class Batch:
    """Scenes and prompts of one step: S scenes of B objects each, masks on the model's own coarse grid of L cells.

    Attributes:
        pixels: f32 (S, 3, H, W), normalised.
        boxes: f32 (S, B, 4) px, x1, y1, x2, y2.
        points: f32 (S, B, 1, 2) px, x, y, on the object.
        masks: f32 (S, B, L, L), the share of each cell that the object covers.
        window: bool (S, B, L, L), true in and around the box.
        things: f32 (S, L, L), the share of each cell that any object covers.
        by_points: whether to prompt with the points, not with the boxes.
        several: whether to ask for several masks to a prompt.
    """

    pixels: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor
    masks: torch.Tensor
    window: torch.Tensor
    things: torch.Tensor
    by_points: bool
    several: bool


def make_batch(bank: SceneBank, rng: np.random.Generator) -> Batch:
    """Draws scenes of the bank, seen anew, and objects in them to prompt for."""
    pixels: list[np.ndarray] = []
    boxes, points, masks, things = [], [], [], []
    while len(pixels) < SCENES_PER_STEP:
        scene = augment(rng, bank[int(rng.integers(len(bank)))], IMAGE_SIZE)
        if not len(scene.boxes_xyxy):
            continue
        pixels.append(scene.image)
        things.append(scene.labels > 0)
        for k in rng.choice(len(scene.boxes_xyxy), PROMPTS_PER_SCENE):
            mask = scene.labels == k + 1
            boxes.append(jitter(scene.boxes_xyxy[k], rng.choice([0.0, 0.1]), rng))
            ys, xs = np.nonzero(mask)
            pick = rng.integers(len(ys))
            points.append((xs[pick], ys[pick]))
            masks.append(mask)
    shape = (SCENES_PER_STEP, PROMPTS_PER_SCENE)
    box = torch.from_numpy(np.stack(boxes).clip(0, IMAGE_SIZE)).float()
    coarse = _cells(masks)
    side = coarse.shape[-1]
    scaled = box / (IMAGE_SIZE / side)
    margin = 0.25 * (scaled[:, 2:] - scaled[:, :2]) + 2
    low, high = scaled[:, :2] - margin, scaled[:, 2:] + margin
    place = torch.arange(side) + 0.5
    columns = (place >= low[:, :1]) & (place < high[:, :1])
    rows = (place >= low[:, 1:]) & (place < high[:, 1:])
    image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return Batch(
        normalize(image, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        box.unflatten(0, shape),
        torch.from_numpy(np.array(points, np.float32)).reshape(*shape, 1, 2),
        coarse.unflatten(0, shape),
        (rows[:, :, None] & columns[:, None]).unflatten(0, shape),
        _cells(things),
        by_points=bool(rng.random() < 0.15),
        several=bool(rng.random() < 0.9),
    )


def _cells(masks: list[np.ndarray]) -> torch.Tensor:
    """The share of each 2 x 2 px cell that masks (H, W) cover, f32 (N, H / 2, W / 2)."""
    return F.avg_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], 2)[:, 0]


def things_loss(head: torch.nn.Module, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How badly each place of the encoded picture tells which of its cells belong to any object, prompted for or not.

    It teaches the encoder outlines at every place of every picture, long before the decoder asks for them.

    Args:
        head: 1 x 1 convolution, D to the 16 cells of a place.
        embeddings: f32 (S, D, L / 4, L / 4), the encoder's output.
        batch: the truth.
    """
    return F.binary_cross_entropy_with_logits(F.pixel_shuffle(head(embeddings), 4)[:, 0], batch.things)


def mask_loss(logits: torch.Tensor, quality: torch.Tensor, batch: Batch, whole: float) -> torch.Tensor:
    """Loss of the best of each prompt's masks, a little of the others', and of the predicted quality of all.

    Args:
        logits: f32 (S, B, K, L, L).
        quality: f32 (S, B, K), the IoU the model expects of each mask.
        batch: the truth.
        whole: weight of the picture beyond the box's surroundings. It is empty for the most part: weighed in from the
            beginning, it teaches the model to answer with empty masks.
    """
    truth = batch.masks[:, :, None].expand_as(logits)
    weight = batch.window[:, :, None] + whole * ~batch.window[:, :, None]
    pixel = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    cross = (pixel * weight).sum((-2, -1)) / weight.sum((-2, -1))
    share = logits.sigmoid() * weight
    dice = 1 - (2 * (share * truth).sum((-2, -1)) + 1) / (share.sum((-2, -1)) + (truth * weight).sum((-2, -1)) + 1)
    each = 2 * cross + dice
    with torch.no_grad():
        found, true = logits > 0, truth > 0.5
        iou = (found & true).sum((-2, -1)) / (found | true).sum((-2, -1)).clamp(min=1)
    return each.amin(-1).mean() + 0.1 * each.mean() + F.mse_loss(quality, iou)


class Steps(Dataset[Batch]):
    """The batches of a training by their step: see `make_batch`."""

    def __init__(self, bank: SceneBank, seed: int) -> None:
        self._bank, self._seed = bank, seed

    def __getitem__(self, step: int) -> Batch:
        return make_batch(self._bank, np.random.default_rng((self._seed, step)))


def train(run: Run) -> None:
    """Trains the sample SAM and writes model, processor and training record.

    Raises:
        UserError: as of `begin` and `take_steps`.
    """
    begin(run)
    bank = open_bank(run.work, run.seed, size=DETAILED, workers=run.workers)
    model = build_model(run.seed).train()
    model.to(torch.device(run.device))
    head = torch.nn.Conv2d(DECODER_WIDTH, 16, 1).to(run.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimisers = Optimisers(model, head.parameters(), LEARNING_RATE, betas=(0.9, 0.999), clip=1.0)

    def step(number: int, prepared: Batch) -> dict[str, torch.Tensor]:
        batch = moved(prepared, run.device)
        prompt = {"input_points": batch.points} if batch.by_points else {"input_boxes": batch.boxes}
        embeddings = model.vision_encoder(batch.pixels).last_hidden_state
        result = model(image_embeddings=embeddings, multimask_output=batch.several, **prompt)
        loss = mask_loss(result.pred_masks, result.iou_scores, batch, whole=min(1.0, 0.05 + 2 * number / run.steps))
        loss = loss + things_loss(head, embeddings, batch)
        optimisers.step(loss, number / run.steps)
        average.update_parameters(model)
        return {"loss": loss}

    parts = {"model": model, "head": head, "average": average, **optimisers.parts}
    seconds = take_steps(run, Steps(bank, run.seed), parts, step)
    cast(SamModel, average.module).save_pretrained(run.folder)
    build_processor().save_pretrained(run.folder)
    finish(run, evaluate, CARD, seconds)


CARD = """# Sample SAM

A `SamModel` of 0.6 million weights: 4 layers of width 64 on patches of 8 px, 256 px input, masks of 128 x 128 cells. It
was trained from scratch on scenes drawn by `pekit.sample.drawing`, with instances the sample benchmark never shows.
Weights are stored in half precision and computed with in single precision.

It cuts out the drawn object in a box. Points on an object were a smaller part of its training, so automatic masks are
rough. It knows nothing of photographs.

Measured on held-out instances, photos squashed to 518 px before the processor, of three masks the one with the best
predicted IoU:

| asked of it | figure | wanted |
|---|---|---|
{table}

Trained in {minutes} minutes on {machine}:

    python -m pekit.sample.train masks --out DIR --seed {seed} --steps {steps}
"""
