"""Trains the sample Grounding DINO from scratch on drawn scenes."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import normalize
from transformers import GroundingDinoProcessor

from pekit.sample.evaluate.grounding import evaluate
from pekit.sample.models.grounding import SIDE, build_model, build_processor
from pekit.sample.train.checkpoints import check_begun, halve, load_state, release, save_state
from pekit.sample.train.grounding_loss import Targets, stage_losses
from pekit.sample.train.grounding_prompts import Prompt, random_prompt
from pekit.sample.train.scenes import StoredScene, augment, open_bank

log = logging.getLogger(__name__)

STEPS = 2900
BATCH = 12
LEARNING_RATE = 1e-3
WARM_UP = 200
DECAY_SHARE = 0.3
EMA = 0.99
SMALL_SIDE, SMALL_SHARE = 96, 0.55  # small pictures teach much of it at two thirds of the time
SAVE_EVERY = 100
_FULL_STOP = 1012


def train(out: Path, device: str, steps: int | None, seed: int, workers: int) -> None:
    """Trains, resuming where an interrupted run stopped, and writes the model folder `out/grounding`.

    Args:
        out: folder of the model folders; its folder "work" keeps the scenes and the state to resume from.
        device: torch device.
        steps: optimiser steps; None for the shipped checkpoint's.
        seed: of scenes, weights and order.
        workers: processes that draw scenes.
    """
    steps = STEPS if steps is None else steps
    torch.set_num_threads(1)
    state_file = out / "work" / "grounding.pt"
    check_begun(state_file, out / "grounding", seed, steps)
    bank = open_bank(out / "work", seed, workers=max(1, workers))
    processor = build_processor()
    model = build_model(seed).train()
    model.to(torch.device(device))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, fused=True)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first, seconds = load_state(state_file, parts)
    started = time.monotonic() - seconds
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        side = SMALL_SIDE if step < SMALL_SHARE * steps else SIDE
        scenes = [augment(rng, bank[index], side) for index in rng.integers(len(bank), size=BATCH)]
        prompts = [random_prompt(rng, [one.category for one in scene.instances]) for scene in scenes]
        pixels, tokens, targets = make_batch(scenes, prompts, processor, device)
        losses = stage_losses(model, pixels, tokens, targets)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, steps)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 50 == 0:
            shown = ", ".join(f"{stage} {loss.item():.3f}" for stage, loss in losses.items())
            log.info("step %d of %d, %.0f s: %s", step, steps, time.monotonic() - started, shown)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(state_file, parts, seed, step + 1, time.monotonic() - started)
    averaged = build_model(seed)
    averaged.load_state_dict(average.module.state_dict())
    folder = out / "grounding"
    averaged.save_pretrained(folder)
    halve(folder)
    build_processor().save_pretrained(folder)
    release(
        folder, "grounding", evaluate(folder, device=device), _CARD, steps, seed, time.monotonic() - started, device
    )


def make_batch(
    scenes: Sequence[StoredScene], prompts: Sequence[Prompt], processor: GroundingDinoProcessor, device: str
) -> tuple[Tensor, dict[str, Tensor], Targets]:
    """Turns scenes and prompts into the model's inputs and what it should find.

    Args:
        scenes: square pictures of one size.
        prompts: one for each scene.
        processor: the model's, for its tokenizer and normalisation.
        device: torch device of the results.

    Returns:
        Normalised pixels (B, 3, S, S), the tokens and the targets.
    """
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).to(device).permute(0, 3, 1, 2) / 255
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
    targets = Targets(*(tensor.to(device) for tensor in (boxes, meant, phrases, phrase_of_token)))
    return pixels, {name: ids.to(device) for name, ids in tokens.items()}, targets


def _schedule(step: int, steps: int) -> float:
    """Share of the full learning rate: a short rise, a long plateau, a straight fall to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY_SHARE * steps))


_CARD = """# Sample Grounding DINO

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
