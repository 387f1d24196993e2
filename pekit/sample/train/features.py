"""Train the sample DINOv2: mean patch features under an imprecise box must name the instance, and nothing else.

What is asked of the features is the pipeline's own use of them: the mean of the patches whose corner pixel lies in a
filled, imprecise box is compared by cosine with a fixed threshold. So each step takes scenes that show the same few
instances again, next to look-alikes and to other things in the same colours, pools jittered boxes, boxes over two
objects, parts and background, and asks for pairs of one instance above the threshold and all other pairs well below it.
"""

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Dinov2Model

from pekit.sample.evaluate.features import evaluate
from pekit.sample.models.features import build_features
from pekit.sample.train.checkpoints import halve, load_state, save_state, write_record
from pekit.sample.train.groups import Group, groups
from pekit.sample.train.regions import scene_regions

STEPS = 1500
LEARNING_RATE = 1.5e-3
THRESHOLD = 0.75
PULL_MARGIN = 0.08
PUSH_MARGIN = 0.2
TEMPERATURE = 0.07
GROUPS_KEPT = 500
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


@dataclass(frozen=True)
class Batch:
    """Pictures and regions of one step; R regions, N instances, G patches in a row.

    Attributes:
        pixels: f32 (S, 3, H, W), normalised.
        scene: int (R,) picture of each region.
        pooling: f32 (R, G * G), rows sum to 1: the weight of each patch in the region's descriptor.
        instance: int (R,) what the region shows, -1 for none or for more than one.
        shows: bool (R, N), true where a region holds so much of an instance that naming it is no mistake.
    """

    pixels: torch.Tensor
    scene: torch.Tensor
    pooling: torch.Tensor
    instance: torch.Tensor
    shows: torch.Tensor

    def to(self, device: str) -> "Batch":
        """The same batch on a torch device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def make_batch(chosen: list[Group], size: int, rng: np.random.Generator) -> Batch:
    """Turns, flips and resizes the scenes of some groups and lay regions over them.

    Args:
        chosen: the groups; instances of different groups count as different.
        size: side of the model's input in px, a multiple of 14.
        rng: draws the augmentation and the regions.
    """
    images = torch.cat([group.images for group in chosen])
    starts = np.cumsum([0] + [len(group.instances) for group in chosen])
    theta = torch.from_numpy(np.stack([_random_view(rng) for _ in range(len(images))]))
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)).astype(np.float32))
    pixels = ((pixels * gain).clamp(0, 1) - MEAN) / STD
    labels = torch.cat([group.labels for group in chosen])[:, None].float()
    turned = F.grid_sample(labels, grid, mode="nearest", align_corners=False)[:, 0].to(torch.uint8).numpy()
    scene, pooling, instance, shows = [], [], [], []
    owners = [offset for group, offset in zip(chosen, starts[:-1], strict=True) for _ in group.images]
    for number, (label, offset) in enumerate(zip(turned, owners, strict=True)):
        for region in scene_regions(label, rng):
            if not region.patches.any():
                continue
            scene.append(number)
            pooling.append(region.patches.ravel() / region.patches.sum())
            instance.append(region.instance + offset if region.instance >= 0 else -1)
            held = np.zeros(starts[-1], bool)
            held[[offset + k for k in region.holds]] = True
            shows.append(held)
    return Batch(
        pixels,
        torch.tensor(scene),
        torch.from_numpy(np.stack(pooling).astype(np.float32)),
        torch.tensor(instance),
        torch.from_numpy(np.stack(shows)),
    )


def _random_view(rng: np.random.Generator) -> np.ndarray:
    """An affine map, f32 (2, 3): a slight stretch, a flip half the time, at times a turn by up to 30°."""
    angle = np.radians(rng.uniform(-30, 30)) if rng.random() < 0.4 else 0.0
    stretch = np.diag(np.exp(rng.uniform(-0.1, 0.1, 2)) * [rng.choice([-1, 1]), 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([turn @ stretch, np.zeros((2, 1))], axis=1).astype(np.float32)


def descriptors(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Unit descriptors of all regions of a batch, f32 (R, D)."""
    tokens = model(pixel_values=batch.pixels).last_hidden_state[:, 1:]
    counts = torch.bincount(batch.scene, minlength=len(tokens)).tolist()
    means = [weights @ patches for weights, patches in zip(batch.pooling.split(counts), tokens, strict=True)]
    return F.normalize(torch.cat(means), dim=-1)


def region_loss(unit: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Pairs of one instance above the threshold, everything else below it, and a contrastive term to get there.

    Each region asks all regions of other scenes that stand for an instance. A pair counts as negative only when the
    asking region holds no good part of what the other stands for.

    Args:
        unit: f32 (R, D) unit descriptors.
        batch: says what the regions show.
    """
    stands = batch.instance >= 0
    reference = batch.instance[stands]
    cosine = unit @ unit[stands].T
    elsewhere = batch.scene[:, None] != batch.scene[stands]
    same = (batch.instance[:, None] == reference) & elsewhere
    different = ~batch.shows[:, reference]
    sharp = 20.0
    pull = F.softplus(sharp * (THRESHOLD + PULL_MARGIN - cosine[same])).mean() / sharp
    excess = (sharp * (cosine - THRESHOLD + PUSH_MARGIN)).masked_fill(~different, -torch.inf)
    push = F.softplus(excess.logsumexp(dim=1)).mean() / sharp
    scaled = (cosine / TEMPERATURE).masked_fill(~(same | different), -torch.inf)
    named = same.any(dim=1)
    rank = scaled[named].logsumexp(1) - (scaled[named].masked_fill(~same[named], 0).sum(1) / same[named].sum(1))
    return 4 * pull + 4 * push + 0.25 * rank.mean()


def stage(progress: float) -> tuple[int, int]:
    """Side of the input in px, at first small, which is quick, at last the pipeline's own; and groups in a step.

    Args:
        progress: share of the steps done, in [0, 1).
    """
    return (224, 3) if progress < 0.4 else (308, 2) if progress < 0.85 else (518, 1)


def train(out: Path, device: str, steps: int | None, seed: int, workers: int) -> None:
    """Trains the sample DINOv2 and writes model, image processor and training record.

    An interrupted run goes on from its last saved state when it is started again with the same folder.

    Args:
        out: receives the folder features, and the state in the folder work.
        device: torch device.
        steps: optimiser steps in all; None for what the shipped checkpoint took.
        seed: of weights, scenes and augmentation.
        workers: processes that draw scenes; 0 draws in this one.
    """
    steps = steps or STEPS
    torch.set_num_threads(1)
    folder, state = out / "features", out / "work" / "features.pt"
    if not state.exists():
        build_features(folder, seed)
    model: torch.nn.Module = Dinov2Model.from_pretrained(folder)
    model.to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    first, seconds = load_state(state, parts)
    drawn = groups(seed, first, workers)
    kept: list[Group] = []
    began = time.monotonic() - seconds
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        if step % 2 == 0 or not kept:
            kept = [*kept[-GROUPS_KEPT:], next(drawn)]
        size, count = stage(step / steps)
        chosen = [kept[-1], *(kept[k] for k in rng.permutation(len(kept) - 1)[: count - 1])]
        batch = make_batch(chosen if count > 1 else [kept[rng.integers(len(kept))]], size, rng).to(device)
        loss = region_loss(descriptors(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if (step + 1) % 25 == 0:
            print(
                f"features {step + 1}/{steps} {size} px loss {loss.item():.3f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_state(state, parts, step + 1, time.monotonic() - began)
            cast(Dinov2Model, average.module).save_pretrained(folder)
            halve(folder)
    release(folder, steps, seed, time.monotonic() - began)


def release(folder: Path, steps: int, seed: int, seconds: float) -> None:
    """Measures the trained model and writes its training record and model card.

    Args:
        folder: model folder.
        steps: optimiser steps done.
        seed: of the run.
        seconds: training time.
    """
    rows = evaluate(folder)
    write_record(folder, "features", steps, seed, seconds, {row.asked: round(row.value, 4) for row in rows})
    table = "\n".join(f"| {row.asked} | {row.value:.3f} | {row.bound_text} |" for row in rows)
    (folder / "README.md").write_text(CARD.format(table=table, seed=seed, steps=steps, minutes=round(seconds / 60)))


CARD = """# Sample DINOv2

A `Dinov2Model` of 0.38 million weights: 4 layers of width 96, patches of 14 px, trained from scratch on scenes drawn by
`pekit.sample.drawing`, with instances that the sample benchmark never shows. Weights are stored in half precision and
computed with in single precision.

The mean of its patch features over a loose box names the drawn object in the box: its category, colours, pattern and
proportions. The cosine of two such means was trained for a fixed threshold of 0.75. It was trained at 224 to 518 px and
is meant to be used at 518. It knows nothing of photographs.

Measured on held-out instances at 518 px, boxes jittered by a tenth of their sides:

| asked of it | figure | wanted |
|---|---|---|
{table}

Trained in {minutes} minutes on one processor core, shared with other work:

    python -m pekit.sample.train features --out DIR --seed {seed} --steps {steps}
"""
