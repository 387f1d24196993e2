"""Train the sample DINOv2: mean patch features under an imprecise box must name the instance, and nothing else.

What is asked of the features is the pipeline's own use of them: the mean of the patches whose corner pixel lies in a
filled, imprecise box is compared by cosine with a fixed threshold. So each step takes scenes that show the same few
instances again, next to look-alikes and to other things in the same colours, pools jittered boxes, boxes over two
objects, parts and background, and asks for pairs of one instance above the threshold and all other pairs well below it.
Colours alone tell most instances apart, so a second term has every patch and every box name its object's category,
colours and pattern. That term comes first, on many small pictures of single objects: shapes take a hundred thousand of
them to learn, sooner when the first ones are alike in size and place, and are hardly learned at all when descriptors
have settled for colours before.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import normalize
from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS, Instance, mask_box
from pekit.sample.evaluate.features import evaluate
from pekit.sample.models.features import IMAGE_SIZE, WIDTH, build_model, build_processor
from pekit.sample.train.groups import Group, draw_group, pair_of
from pekit.sample.train.optimisers import Optimisers
from pekit.sample.train.regions import PATCH, scene_regions
from pekit.sample.train.runs import Run, begin, finish, moved, take_steps
from pekit.sample.train.scenes import DETAILED, SceneBank, open_bank

LOOKS = {"category": CATEGORIES, "colour": tuple(COLOURS), "accent": tuple(COLOURS), "pattern": PATTERNS}
STEPS = 19000
THRESHOLD = 0.75
PULL_MARGIN = 0.04
PUSH_MARGIN = 0.24
TEMPERATURE = 0.07
GROUPS_KEPT = 501  # one is drawn every fourth step; steps look at the last ones
NAMING_UNTIL = 0.42  # share of the steps that learn the looks of single objects
PAIRS_SHARE = 0.25  # of the other steps see many instances, two scenes of each; the rest few, confusable ones, often


@dataclass(frozen=True)
class Batch:
    """Pictures and regions of one step; R regions, N instances, G patches in a row.

    Attributes:
        pixels: f32 (S, 3, H, W), normalised.
        corner: int (S, 2), row and column of each picture's first patch in the grid of a whole photo.
        scene: int (R,) picture of each region.
        pooling: f32 (R, G * G), rows sum to 1: the weight of each patch in the region's descriptor.
        instance: int (R,) what the region shows, -1 for none or for more than one.
        shows: bool (R, N), true where a region holds so much of an instance that naming it is no mistake.
        visible: int (S, G * G), the instance at the centre of each patch, -1 for none.
        looks: int (N, 4), each instance's category, colour, accent and pattern as numbers.
    """

    pixels: torch.Tensor
    corner: torch.Tensor
    scene: torch.Tensor
    pooling: torch.Tensor
    instance: torch.Tensor
    shows: torch.Tensor
    visible: torch.Tensor
    looks: torch.Tensor


def make_batch(
    chosen: list[Group], size: int, reach: float | None, rng: np.random.Generator, variety: float = 1.0
) -> Batch:
    """Turn, flip and resize the scenes of some groups, and lay regions over them.

    Args:
        chosen: the groups; instances of different groups count as different.
        size: side of the model's input in px, a multiple of 14.
        reach: share of a scene's width and height to look at; None looks at single objects from near.
        rng: draws the augmentation and the regions.
        variety: see `random_view`.
    """
    images = [image for group in chosen for image in group.images]
    labels = [label for group in chosen for label in group.labels]
    starts = np.cumsum([0] + [len(group.instances) for group in chosen])
    views = [random_view(label, reach, rng, variety) for label in labels]
    pixels = torch.from_numpy(np.stack([look(*each, size, True) for each in zip(images, views, strict=True)]))
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)).astype(np.float32))
    pixels = (pixels.permute(0, 3, 1, 2) / 255 * gain).clamp(0, 1)
    seen = [look(*each, size, False) for each in zip(labels, views, strict=True)]
    scene, pooling, instance, shows, visible = [], [], [], [], []
    owners = [offset for group, offset in zip(chosen, starts[:-1], strict=True) for _ in group.images]
    for number, (label, offset) in enumerate(zip(seen, owners, strict=True)):
        scale = abs(np.linalg.det(views[number][:, :2])) * labels[number].size / label.size
        left = scale * np.bincount(label.ravel(), minlength=256) / _areas(labels[number]).clip(min=1)
        centres = label[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].ravel().astype(np.int64)
        visible.append(np.where(centres > 0, centres - 1 + offset, -1))
        for region in scene_regions(label, left > 0.6, rng):
            if not region.patches.any():
                continue
            scene.append(number)
            pooling.append(region.patches.ravel() / region.patches.sum())
            instance.append(region.instance + offset if region.instance >= 0 else -1)
            held = np.zeros(starts[-1], bool)
            held[[offset + k for k in region.holds]] = True
            shows.append(held)
    spare = (IMAGE_SIZE - size) // PATCH
    return Batch(
        normalize(pixels, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        torch.from_numpy(rng.integers(spare + 1, size=(len(images), 2))),
        torch.tensor(scene),
        torch.from_numpy(np.stack(pooling).astype(np.float32)),
        torch.tensor(instance),
        torch.from_numpy(np.stack(shows)),
        torch.from_numpy(np.stack(visible)),
        torch.tensor([looks(one) for group in chosen for one in group.instances]),
    )


def looks(instance: Instance) -> tuple[int, ...]:
    """Category, colour, accent and pattern of an instance, as numbers."""
    return tuple(names.index(instance.looks[kind]) for kind, names in LOOKS.items())


def _areas(label: np.ndarray) -> np.ndarray:
    """About how many pixels each label has: int (256,)."""
    return 16 * np.bincount(label[::4, ::4].ravel(), minlength=256)


def look(image: np.ndarray, view: np.ndarray, size: int, smooth: bool) -> np.ndarray:
    """What is seen of a picture (H, W, …) in a view (2, 3): uint8 (size, size, …), black beyond its edges."""
    side = np.array(image.shape[1::-1])[:, None]
    step = view[:, :2] * side / size
    first = (1 + view[:, 2:] - view[:, :2].sum(1, keepdims=True)) * side / 2
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    place = np.concatenate([step, first], axis=1).ravel().tolist()
    return np.asarray(Image.fromarray(image).transform((size, size), Image.Transform.AFFINE, place, resampling))


def random_view(label: np.ndarray, reach: float | None, rng: np.random.Generator, variety: float = 1.0) -> np.ndarray:
    """A way to look at a scene: stretched a little, flipped half the time, at times turned by up to 30°.

    Args:
        label: uint8 (H, W), 0 or 1 + number of the visible instance.
        reach: share of the scene to look at; None looks at one object from so near that it takes up half of the view
            and more.
        rng: draws the view.
        variety: from 0, where single objects are centred, upright and all of one size, to 1.

    Returns:
        f32 (2, 3), the affine map from places in the view to places in the scene, both in [-1, 1].
    """
    angle = variety * np.radians(rng.uniform(-30, 30)) if rng.random() < 0.4 else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shown = rng.choice(np.unique(label[label > 0]))
    box = mask_box(label == shown).astype(np.float64) / len(label) * 2 - 1
    centre = (box[:2] + box[2:]) / 2
    if reach is None:
        reach = min(1.0, (box[2:] - box[:2]).max() / 2 * rng.uniform(1.15 - 0.25 * variety, 1.15 + 0.55 * variety))
        centre += variety * reach * rng.normal(0, 0.1, 2)
    else:
        centre = np.clip(centre + reach * rng.uniform(-0.7, 0.7, 2), reach - 1, 1 - reach)
    stretch = np.diag(reach * np.exp(variety * rng.uniform(-0.1, 0.1, 2)) * [rng.choice([-1, 1]), 1])
    return np.concatenate([turn @ stretch, centre[:, None]], axis=1).astype(np.float32)


def patch_tokens(model: Dinov2Model, batch: Batch) -> torch.Tensor:
    """Patch tokens of a batch, f32 (S, G * G, D), each picture taken to be a part of a whole photo.

    Were small pictures given the positions of a whole one, patches would learn to look at neighbours far further off,
    by their position, than the neighbours they have in a photo of full size.

    Args:
        model: to train.
        batch: of pictures with G patches in a row.
    """
    parts = model.embeddings
    side, n = IMAGE_SIZE // PATCH, batch.pixels.shape[-1] // PATCH
    positions = parts.position_embeddings[0, 1:].unflatten(0, (side, side))
    rows, columns = (batch.corner[:, :, None] + torch.arange(n, device=batch.corner.device)).unbind(1)
    patches = parts.patch_embeddings(batch.pixels) + positions[rows[:, :, None], columns[:, None]].flatten(1, 2)
    first = (parts.cls_token + parts.position_embeddings[:, :1]).expand(len(patches), -1, -1)
    return model.layernorm(model.encoder(torch.cat([first, patches], dim=1)).last_hidden_state)[:, 1:]


def region_means(tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean patch tokens of all regions of a batch: f32 (S, G * G, D) -> (R, D)."""
    counts = torch.bincount(batch.scene, minlength=len(tokens)).tolist()
    return torch.cat([weights @ one for weights, one in zip(batch.pooling.split(counts), tokens, strict=True)])


def looks_loss(
    head: torch.nn.Module, tokens: torch.Tensor, means: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """How badly single patches, and boxes around an object, tell the object's looks; and how often boxes are right.

    Args:
        head: linear, D to one logit for "no object" and one for each value of the four looks.
        tokens: f32 (S, G * G, D).
        means: f32 (R, D), of the regions.
        batch: says what they show.

    Returns:
        The loss, and the shares of boxes whose category, colour, accent and pattern were named, f32 (4,).
    """
    sizes = [(kind == "category") + len(names) for kind, names in LOOKS.items()]
    seen, boxed = batch.visible >= 0, batch.instance >= 0
    patches = torch.cat([tokens[seen], tokens[~seen]])
    truth = torch.cat([batch.looks[batch.visible[seen]], batch.looks.new_full((int((~seen).sum()), 4), -1)])
    loss = 0.3 * F.cross_entropy(head(patches)[:, : sizes[0]], truth[:, 0] + 1)
    for rows, wanted, weight in (
        (tokens[seen], batch.looks[batch.visible[seen]], 0.3),
        (means[boxed], batch.looks[batch.instance[boxed]], 1.0),
    ):
        logits = head(rows).split(sizes, dim=1)
        each = [F.cross_entropy(logits[0], wanted[:, 0] + 1)]
        each += [F.cross_entropy(part, wanted[:, k]) for k, part in enumerate(logits) if k]
        loss = loss + weight * torch.stack(each).sum()
        right = [(part.argmax(1) == wanted[:, k] + (k == 0)).float().mean() for k, part in enumerate(logits)]
    return loss, torch.stack(right)  # of boxes, which come last; as a tensor, so that no step waits for the device


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
    return 8 * pull + 4 * push + 0.25 * rank.mean()


def stage(rng: np.random.Generator) -> tuple[int, float | None, int]:
    """Side of the input in px, share of the scenes it shows (None: single objects), and groups in a step.

    Near views teach shapes and patterns for a fraction of the cost: an object has as many patches in them as it will
    have in a whole picture of 518 px, and hardly anything else has. Larger parts, at the scale of a whole picture, keep
    the features true to their use.

    Args:
        rng: draws one of them.
    """
    kind = rng.choice(3, p=(0.45, 0.35, 0.2))
    return ((126, None, 4), (182, None, 2), (266, 266 / IMAGE_SIZE, 1))[kind]


class Steps(Dataset[Batch]):
    """The batches of a training by their step, for a DataLoader to prepare ahead.

    A batch depends on its step alone, not on those that the same process prepared before.

    Args:
        bank: scenes.
        seed: of the run.
        steps: of the whole run.
        workers: processes that share the work, 0 for this one alone; all together they remember as many groups as one.
    """

    def __init__(self, bank: SceneBank, seed: int, steps: int, workers: int) -> None:
        self._bank, self._seed, self._steps = bank, seed, steps
        self._first = math.ceil(NAMING_UNTIL * steps)  # step that looks at groups
        self._room = math.ceil(GROUPS_KEPT / max(1, workers))  # a group takes 3 MB
        self._drawn: dict[int, Group] = {}

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._seed, step))
        if step < self._first:
            naming = step / self._steps / NAMING_UNTIL
            return make_batch(self._pairs(rng, 32), 98, None, rng, max(0.0, 1.5 * naming - 0.5))
        groups = [self._first, *range(self._first // 4 * 4 + 4, step + 1, 4)][-GROUPS_KEPT:]
        size, reach, count = stage(rng)
        if rng.random() < PAIRS_SHARE:
            chosen = self._pairs(rng, 4 * count)
        else:
            chosen = [self._group(groups[k]) for k in rng.permutation(len(groups))[:count]]
        return make_batch(chosen, size, reach, rng)

    def _group(self, number: int) -> Group:
        """A group by its number: remembered, or drawn again."""
        if number not in self._drawn:
            if len(self._drawn) == self._room:
                del self._drawn[min(self._drawn)]  # the first that steps will stop to look at
            self._drawn[number] = draw_group((self._seed, number))
        return self._drawn[number]

    def _pairs(self, rng: np.random.Generator, count: int) -> list[Group]:
        pairs = rng.permutation(len(self._bank) // 2)[:count]
        return [pair_of(self._bank, int(k)) for k in pairs]


def train(run: Run) -> None:
    """Trains the sample DINOv2 and writes model, image processor and training record.

    Raises:
        UserError: as of `begin` and `take_steps`.
    """
    begin(run)
    model = build_model(run.seed).train()
    model.to(torch.device(run.device))
    head = torch.nn.Linear(WIDTH, 1 + sum(map(len, LOOKS.values()))).to(run.device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimisers = Optimisers(model, head.parameters())
    bank = open_bank(run.work, run.seed, size=DETAILED, workers=run.workers)

    def step(number: int, prepared: Batch) -> dict[str, torch.Tensor]:
        batch = moved(prepared, run.device)
        tokens = patch_tokens(model, batch)
        means = region_means(tokens, batch)
        named, right = looks_loss(head, tokens, means, batch)
        weight = 0.2 if number < NAMING_UNTIL * run.steps else 1
        loss = named + weight * region_loss(F.normalize(means, dim=-1), batch)
        optimisers.step(loss, number / run.steps)
        average.update_parameters(model)
        return {"loss": loss, "of looks": named, **dict(zip(LOOKS, right, strict=True))}

    parts = {"model": model, "head": head, "average": average, **optimisers.parts}
    seconds = take_steps(run, Steps(bank, run.seed, run.steps, run.workers), parts, step)
    cast(Dinov2Model, average.module).save_pretrained(run.folder)
    build_processor().save_pretrained(run.folder)
    finish(run, evaluate, CARD, seconds)


CARD = """# Sample DINOv2

A `Dinov2Model` of 0.92 million weights: 5 layers of width 128, patches of 14 px, trained from scratch on scenes drawn
by `pekit.sample.drawing`, with instances that the sample benchmark never shows. Weights are stored in half precision
and computed with in single precision.

The mean of its patch features over a loose box tells the drawn object in the box by its colours, its pattern and, less
surely, its shape: a thing of another category in the very same colours and pattern is often taken for the same. The
cosine of two such means was trained for a fixed threshold of 0.75. It is meant to be used at 518 px. It knows nothing
of photographs.

Measured on held-out instances at 518 px, boxes jittered by a tenth of their sides. The last three rows are
of scenes full of look-alikes and of things painted alike:

| asked of it | figure | wanted |
|---|---|---|
{table}

Trained in {minutes} minutes on {machine}:

    python -m pekit.sample.train features --out DIR --seed {seed} --steps {steps}
"""
