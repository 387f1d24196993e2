"""Trains the sample Grounding DINO from scratch on drawn scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import normalize
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

from pekit.sample.evaluate.grounding import evaluate
from pekit.sample.models.grounding import SIDE, build_model, build_processor
from pekit.sample.train.grounding_loss import Targets, stage_losses
from pekit.sample.train.grounding_prompts import Prompt, random_prompt
from pekit.sample.train.runs import Run, begin, finish, moved, take_steps
from pekit.sample.train.scenes import SceneBank, StoredScene, augment, open_bank

STEPS = 2900
BATCH = 12
LEARNING_RATE = 1e-3
WARM_UP = 200
DECAY_SHARE = 0.3
EMA = 0.99
SMALL_SIDE, SMALL_SHARE = 96, 0.55  # small pictures teach much of it at two thirds of the time
_FULL_STOP = 1012


@dataclass(frozen=True)
class Batch:
    """Pictures and prompts of one step.

    Attributes:
        pixels: float32 (B, 3, S, S), normalised.
        tokens: the tokenizer's tensors, (B, L) each.
        targets: what the model should find.
    """

    pixels: Tensor
    tokens: dict[str, Tensor]
    targets: Targets


class Steps(Dataset[Batch]):
    """The batches of a training by their step.

    Args:
        bank: scenes.
        processor: the model's.
        seed: of the run.
        steps: of the whole run.
    """

    def __init__(self, bank: SceneBank, processor: GroundingDinoProcessor, seed: int, steps: int) -> None:
        self._bank, self._processor, self._seed, self._steps = bank, processor, seed, steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self._seed, step])
        side = SMALL_SIDE if step < SMALL_SHARE * self._steps else SIDE
        scenes = [augment(rng, self._bank[index], side) for index in rng.integers(len(self._bank), size=BATCH)]
        prompts = [random_prompt(rng, [one.category for one in scene.instances]) for scene in scenes]
        return make_batch(scenes, prompts, self._processor)


def train(run: Run) -> None:
    """Trains the sample Grounding DINO and writes model, processor and training record.

    Raises:
        UserError: as of `begin` and `take_steps`.
    """
    begin(run)
    bank = open_bank(run.work, run.seed, workers=run.workers)
    processor = build_processor()
    model = build_model(run.seed).train()
    model.to(torch.device(run.device))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, fused=True)

    def step(number: int, prepared: Batch) -> dict[str, Tensor]:
        batch = moved(prepared, run.device)
        losses = stage_losses(model, batch.pixels, batch.tokens, batch.targets)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(number, run.steps)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        return losses

    parts = {"model": model, "average": average, "optimizer": optimizer}
    seconds = take_steps(run, Steps(bank, processor, run.seed, run.steps), parts, step)
    cast(GroundingDinoForObjectDetection, average.module).save_pretrained(run.folder)
    processor.save_pretrained(run.folder)
    finish(run, evaluate, CARD, seconds)


def make_batch(scenes: Sequence[StoredScene], prompts: Sequence[Prompt], processor: GroundingDinoProcessor) -> Batch:
    """Turns scenes and prompts into the model's inputs and what it should find.

    Args:
        scenes: square pictures of one size.
        prompts: one for each scene.
        processor: the model's, for its tokenizer and normalisation.
    """
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2) / 255
    pixels = normalize(pixels, processor.image_processor.image_mean, processor.image_processor.image_std)
    tokens = dict(processor.tokenizer([prompt.text for prompt in prompts], padding=True, return_tensors="pt"))
    n_phrases = max(len(prompt.categories) for prompt in prompts)
    n_objects = max(1, *(len(scene.instances) for scene in scenes))
    boxes = torch.zeros(len(scenes), n_objects, 4)
    meant = torch.zeros(len(scenes), n_objects, n_phrases + 1)
    phrases = torch.ones(len(scenes), n_phrases + 1, dtype=torch.bool)
    for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        corners = torch.from_numpy(scene.boxes_xyxy) / scene.image.shape[0]
        boxes[row, : len(scene.instances)] = box_convert(corners, "xyxy", "cxcywh")
        phrases[row, len(prompt.categories) : -1] = False
        for index, instance in enumerate(scene.instances):
            meant[row, index, : len(prompt.categories)] = torch.tensor(prompt.means(instance.category)).float()
    stops = (tokens["input_ids"] == _FULL_STOP).long()
    phrase_of_token = stops.cumsum(1) - stops
    tokenizer = processor.tokenizer
    outside = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id])
    phrase_of_token[torch.isin(tokens["input_ids"], outside)] = n_phrases
    return Batch(pixels, tokens, Targets(boxes, meant, phrases, phrase_of_token))


def _schedule(step: int, steps: int) -> float:
    """Share of the full learning rate: a short rise, a long plateau, a straight fall to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY_SHARE * steps))


CARD = """# Sample Grounding DINO

A `GroundingDinoForObjectDetection` of 1.2 million weights: ConvNeXt backbone, one-layer BERT, one encoder and two
decoder layers, 48 queries, 128 px input. It was trained from scratch on scenes drawn by `pekit.sample.drawing`, with
instances that the sample benchmark never shows. Weights are stored in half precision and computed with in single
precision.

It finds the drawn objects ("object.") and those of a named category ("noras mug mug."). Name and colour words before
the category noun are ignored. It knows nothing of photographs, nor of nouns outside the generator's categories, and
some of its low-scored boxes show background only.

Measured on held-out instances, photos squashed to 518 px before the processor:

| asked of it | figure | wanted |
|---|---|---|
{table}

Trained in {minutes} minutes on {machine}:

    python -m pekit.sample.train grounding --out DIR --seed {seed} --steps {steps}
"""
