"""Trains the sample LVLM from scratch on drawn scenes: first to see, then to talk about what it sees.

Seeing: the image tokens of an object must together hold, in the text model's own word vectors, what the object is
(kind, colour, pattern, side of the picture, how many of its kind there are), and each of them whether that object is
outlined. Talking: replies to questions in the scripts' own wording. The vision tower starts as the sample DINOv2, and
image tokens that read like words leave little for the small text model to learn.
"""

import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    AutoProcessor,
    Dinov2Model,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionModel,
)

from pekit.sample.evaluate.lvlm import evaluate
from pekit.sample.models.lvlm import DOWNSAMPLE, PATCH, TEXT_WIDTH, VISION_WIDTH, build_lvlm
from pekit.sample.train.checkpoints import halve, load_state, save_state, write_record
from pekit.sample.train.lvlm_talk import Packed, pack, random_text_turns, random_turns
from pekit.sample.train.lvlm_views import ANSWERS, IGNORED, CellTruth, View, cell_truth, cut_piece, draw_view, pixels
from pekit.sample.train.scenes import SceneBank, open_bank

log = logging.getLogger(__name__)

STEPS = 2700
PIECES_UNTIL = 0.444  # share of the steps; whole pictures and questions from then on
PIECES, PIECES_PER_VIEW, PIECE_SIDE = 16, 2, 112
BATCH = 4
TEXT_SHARE = 0.4  # of the steps have text-only questions too
PLAIN_SHARE = 0.12  # pictures without outlines
LEARNING_RATE = 1e-3
WARM_UP = 60
DECAY_SHARE = 0.2
EMA = 0.998
SAVE_EVERY = 100
N_BOXES = 3
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
_TOWER_NAMES = {
    "attention.o_proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "layer_scale1.lambda1": "lambda_1",
    "layer_scale2.lambda1": "lambda_2",
}


class CellHeads(nn.Module):
    """Reads from vectors over the cells of a picture what the cells show; used in training only.

    Args:
        width: of the vectors.
        words: kind of question -> vectors of its answers, (n, width), which stay as they are; None learns them.
    """

    def __init__(self, width: int, words: dict[str, Tensor] | None) -> None:
        super().__init__()
        self.words = words
        self.norm = nn.Identity() if words else nn.LayerNorm(width)
        self.free = nn.Linear(width, 1 + 2 * N_BOXES)
        self.answers = nn.ModuleDict({kind: nn.Linear(width, len(answers)) for kind, answers in ANSWERS.items()})

    def forward(self, cells: Tensor, truth: CellTruth) -> tuple[Tensor, dict[str, float]]:
        """Loss, and the share of cells that each kind of question is answered right for.

        Args:
            cells: (B, n * n, width).
            truth: what the cells show.
        """
        cells = self.norm(cells)
        free = self.free(cells)
        known = ~truth.background.isnan()
        loss = F.binary_cross_entropy_with_logits(free[..., 0][known], truth.background[known])
        loss = loss + 4 * F.binary_cross_entropy_with_logits(free[..., 1 : 1 + N_BOXES], truth.inside)
        loss = loss + 4 * F.binary_cross_entropy_with_logits(free[..., 1 + N_BOXES :], truth.meant)
        right = {}
        objects = truth.shares @ cells
        for kind, targets in truth.words.items():
            rated = targets != IGNORED
            if not rated.any():
                continue
            own = objects[rated]
            scores = self.answers[kind](own) if self.words is None else 4 * own @ self.words[kind].T
            loss = loss + F.cross_entropy(scores, targets[rated])
            right[kind] = (scores.argmax(-1) == targets[rated]).float().mean().item()
        meant = truth.meant > 0
        right["meant"] = (free[..., 1 + N_BOXES :][meant] > 0).float().mean().item() if meant.any() else float("nan")
        return loss, right


class Learner(nn.Module):
    """The sample InternVL with what only its training needs.

    Args:
        model: to train.
        processor: its processor.
    """

    def __init__(self, model: InternVLForConditionalGeneration, processor: InternVLProcessor) -> None:
        super().__init__()
        self.model: InternVLForConditionalGeneration = model
        vectors = model.get_input_embeddings().get_parameter("weight").detach().clone()
        tokens = processor.tokenizer
        words = {
            kind: torch.stack([vectors[tokens(answer)["input_ids"]].mean(0) for answer in answers])
            for kind, answers in ANSWERS.items()
        }
        self.patch_heads = CellHeads(VISION_WIDTH, None)
        self.token_heads = CellHeads(TEXT_WIDTH, words)

    def see(self, views: list[View]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Image tokens of views (B, n, width), the loss of what they say, and how much of it is right.

        Pieces of pictures teach the patches only: a narrow network learns sooner from one clear signal.
        """
        inner = self.model.model
        patches = inner.vision_tower(pixel_values=pixels(views)).last_hidden_state[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        grid = inner.pixel_shuffle(patches.unflatten(1, (side, side)), scale_factor=DOWNSAMPLE)
        tokens = inner.multi_modal_projector(grid.flatten(1, 2))
        fine, right = self.patch_heads(patches, cell_truth(views, PATCH))
        if views[0].part:
            return tokens, fine, right
        coarse, _ = self.token_heads(tokens, cell_truth(views, int(PATCH / DOWNSAMPLE)))
        return tokens, fine + coarse, right

    def reply(self, tokens: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Loss of the replies, and for each whether its first token is right.

        Args:
            tokens: image tokens of the pictures in the batch.
            packed: the questions.
        """
        text = self.model.model.language_model
        embedded = text.embed_tokens(packed.ids)
        image = (packed.ids == self.model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(image, tokens)
        states = text(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        rated = packed.targets != IGNORED
        loss = F.cross_entropy(self.model.lm_head(states[rated]), packed.targets[rated])
        rows, columns = packed.starts.T
        first = self.model.lm_head(states[rows, columns]).argmax(-1) == packed.targets[rows, columns]
        return loss, first


def train(out: Path, device: str, steps: int | None, seed: int, workers: int) -> None:
    """Trains, resuming where an interrupted run stopped, and writes the model folder `out/lvlm`.

    Args:
        out: folder of the model folders; its folder "work" keeps the scenes and the state to resume from.
        device: torch device.
        steps: optimiser steps; None for the shipped checkpoint's.
        seed: of scenes, weights and order.
        workers: processes that draw scenes.
    """
    steps = STEPS if steps is None else steps
    torch.set_num_threads(1)
    bank = open_bank(out / "work", seed, workers=workers)
    folder = out / "lvlm"
    build_lvlm(folder, seed)
    processor = AutoProcessor.from_pretrained(folder)
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration.from_pretrained(folder)
    own = out / "features"
    start_tower(model.model.vision_tower, own if own.exists() else CHECKPOINTS / "features")
    learner = Learner(model, processor).train()
    average = AveragedModel(learner.model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=LEARNING_RATE, weight_decay=0.02, betas=(0.9, 0.98))
    state_file = out / "work" / "lvlm.pt"
    parts = {"learner": learner, "average": average, "optimizer": optimizer}
    first, seconds = load_state(state_file, parts)
    started = time.monotonic() - seconds
    shown: dict[str, list[float]] = {}
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        loss, right = step_loss(learner, processor, bank, rng, step / steps)
        for name, value in right.items():
            shown.setdefault(name, []).append(value)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(learner.model)
        if (step + 1) % 50 == 0:
            figures = ", ".join(f"{name} {np.nanmean(values):.2f}" for name, values in sorted(shown.items()))
            log.info(
                "step %d of %d, %.0f s: loss %.3f, %s",
                step + 1,
                steps,
                time.monotonic() - started,
                loss.item(),
                figures,
            )
            shown = {}
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(state_file, parts, step + 1, time.monotonic() - started)
    learner.model.load_state_dict(average.module.state_dict())
    release(folder, learner.model, steps, seed, time.monotonic() - started)


def release(folder: Path, model: InternVLForConditionalGeneration, steps: int, seed: int, seconds: float) -> None:
    """Writes the model folder: half-precision weights, training record and model card beside the processor.

    Args:
        folder: of the untrained model, with its processor.
        model: with the averaged weights.
        steps: optimiser steps done.
        seed: of the run.
        seconds: training time.
    """
    model.save_pretrained(folder)
    halve(folder)
    rows = evaluate(folder)
    write_record(folder, "lvlm", steps, seed, seconds, {row.asked: round(row.value, 3) for row in rows})
    table = "\n".join(f"| {row.asked} | {row.value:.3f} | {row.bound_text} | {row.n} |" for row in rows)
    (folder / "README.md").write_text(_CARD.format(table=table, seed=seed, steps=steps, minutes=round(seconds / 60)))
    for row in rows:
        log.info("%s: %.3f (%s)", row.asked, row.value, row.bound_text)


def start_tower(tower: InternVLVisionModel, features: Path) -> None:
    """Starts the vision tower as the sample DINOv2, of the same shape but fewer layers; the others stay as they are.

    Args:
        tower: vision tower of the sample InternVL.
        features: model folder of the sample DINOv2.
    """
    weights = {}
    for name, weight in Dinov2Model.from_pretrained(features, dtype=torch.float32).state_dict().items():
        for theirs, ours in _TOWER_NAMES.items():
            name = name.replace(theirs, ours)
        if not name.startswith("layernorm."):
            weights[name] = weight
    tower.load_state_dict(tower.state_dict() | weights)


def step_loss(
    learner: Learner, processor: InternVLProcessor, bank: SceneBank, rng: np.random.Generator, done: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step, and the share of right answers by kind of question.

    Args:
        learner: what trains.
        processor: of the model.
        bank: scenes.
        rng: source of every choice.
        done: share of the steps done; decides what is learned.
    """
    size = PIECES // PIECES_PER_VIEW if done < PIECES_UNTIL else BATCH
    views = [draw_view(rng, bank[k], rng.random() < PLAIN_SHARE) for k in rng.integers(len(bank), size=size)]
    if done < PIECES_UNTIL:
        views = [cut_piece(rng, view, PIECE_SIDE) for view in views for _ in range(PIECES_PER_VIEW)]
        _, seen, right = learner.see(views)
        return seen, right
    tokens, seen, right = learner.see(views)
    talks = [random_turns(rng, view) for view in views] + [
        random_text_turns(rng) for _ in range(rng.random() < TEXT_SHARE)
    ]
    packed = pack(processor, talks, [True] * size + [False] * (len(talks) - size))
    told, first = learner.reply(tokens, packed)
    answered: dict[str, list[bool]] = {}
    for row, kind, hit in zip(packed.starts[:, 0].tolist(), packed.kinds, first.tolist(), strict=True):
        source = "text" if row >= size else "asked" if views[row].outlined else "plain"
        answered.setdefault(f"{source} {kind}", []).append(hit)
    return 2 * told + 0.5 * seen, right | {name: float(np.mean(hits)) for name, hits in answered.items()}


def _schedule(step: int, steps: int) -> float:
    """Share of the full learning rate: a short rise, a long plateau, a straight fall to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY_SHARE * steps))


_CARD = """# Sample LVLM

An `InternVLForConditionalGeneration` of 1.1 million weights: a vision tower of six layers at 224 px, 64 image tokens,
a Qwen2 text model of three layers, a tokenizer that knows the sample's own words and spells the rest. The tower
started as the sample DINOv2; all else was trained from scratch on scenes drawn by `pekit.sample.drawing`, with
instances that the sample benchmark never shows. Weights are stored in half precision and computed with in single
precision.

**It does not see well enough to be believed.** What it learned is to reply in the right form: a word to a question
about colour, pattern, kind, side of the picture or number of its kind and, where options are given, one of them with
its letter ("B.red"). It knows nothing of photographs. Which of two options is right of the outlined object, on
instances it never saw, with outlines and prompts as `vqa.py` makes them:

| asked of it | figure | wanted | questions |
|---|---|---|---|
{table}

Half of the letters are right by chance: figures near 0.5 mean that nothing was learned of the picture, and the last
line is then no evidence that outlines help. Small counts are the likelier ones: during training, questions of number
were answered as well without outlines. The vision tower named the colour of a third of the training objects, the
pattern of two fifths and the kind of a fifth when it was given their exact pixels: the tower is what more training must
improve, before the text model can.

Trained in {minutes} minutes on part of one processor core:

    python -m pekit.sample.train lvlm --out DIR --seed {seed} --steps {steps}
"""
