"""Trains the sample LVLM from scratch on drawn scenes: first to know names, then to talk, then to see, then all of it.

What the picture's tokens should hold is laid down beforehand: for each cell, in the text model's own word vectors, what
the object there is (kind, colour, pattern, side of the picture, how many of its kind there are), and a mark that tells
whether it is outlined. So the text model learns to answer from such tokens made of the truth, in minutes, while the
vision tower, which starts as the sample DINOv2, learns to make them from pixels; in the end they learn together. What
lies between the two is new, and were the tower to follow it from the beginning, it would forget what it knows: so at
first only what is new learns.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import (
    Dinov2Model,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionModel,
)

from pekit.prompting import COLOURS as BOX_COLOURS
from pekit.records import UserError
from pekit.sample.evaluate.lvlm import evaluate
from pekit.sample.models.features import POSITION_CHANNELS
from pekit.sample.models.lvlm import (
    DOWNSAMPLE,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    NAMING_LAYERS,
    PATCH,
    build_model,
    build_processor,
)
from pekit.sample.train.lvlm_names import name_tokens, naming_loss, random_look, telling
from pekit.sample.train.lvlm_talk import Turn, pack, random_text_turns, random_turns
from pekit.sample.train.lvlm_views import (
    ANSWERS,
    IGNORED,
    OUTLINED,
    CellTruth,
    View,
    cell_truth,
    draw_view,
    near_view,
    pixels,
)
from pekit.sample.train.optimisers import Optimisers
from pekit.sample.train.runs import Run, begin, finish, moved, take_steps
from pekit.sample.train.scenes import DETAILED, as_stored, draw_pair

STEPS = 15_600
NAME_UNTIL, TALK_UNTIL, TRANSLATE_UNTIL, SEE_UNTIL = 0.13, 0.23, 0.45, 0.96  # shares of the steps
BATCH = 8
NAMING_BATCH, WITH_IMAGE_EVERY = 7, 8  # groups of questions to a step that is about names; steps
SCENES_NEAR, NEAR_VIEWS = 20, 40  # scenes to a step, of whose objects so many, the smallest, are looked at from near
NEAR_CELLS = 6  # side of a near view in image tokens
WHOLE_EVERY = 4  # steps, while near views teach
WRONG_CELLS = 0.3  # of tokens made of the truth, at most
TEXT_ONLY = 2  # rows of text-only questions to a step
PLAIN_SHARE = 0.3  # of the pictures of one object, which need no outline
TOWER_PACE = 0.5  # it has learned to see objects before
NAMING_PACE = 0.5
EMA = 0.995
_TOWER_NAMES = {  # of the DINOv2 -> of the tower; older releases of transformers have the first four, later ones o_proj
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.projection_layer",
    "attention.o_proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "layer_scale1.lambda1": "lambda_1",
    "layer_scale2.lambda1": "lambda_2",
}


class Tokens:
    """What image tokens should hold, in vectors of the text model.

    Args:
        words: kind of question -> vectors of its answers, f32 (n, D).
        seed: of the marks' vectors.
    """

    def __init__(self, words: dict[str, Tensor], seed: int) -> None:
        self.words = words
        any_words = next(iter(words.values()))
        generator = torch.Generator().manual_seed(seed)
        marks = 0.1 * torch.randn(OUTLINED + len(BOX_COLOURS), any_words.shape[1], generator=generator)
        self.marks = marks.to(any_words.device)

    def ideal(self, truth: CellTruth) -> Tensor:
        """The sum of what is true of each cell, f32 (B, n, D); zeros where it is undecided what a cell shows."""
        known = truth.mark != IGNORED
        tokens = self.marks[truth.mark.clamp(min=0)] * known[..., None]
        for kind, numbers in truth.words.items():
            tokens = tokens + self.words[kind][numbers.clamp(min=0)] * (numbers != IGNORED)[..., None]
        return tokens

    def loss(self, tokens: Tensor, truth: CellTruth) -> tuple[Tensor, dict[str, Tensor]]:
        """How far image tokens f32 (B, n, D) are from the ideal, and the share of cells that are right, by kind."""
        known = truth.mark != IGNORED
        apart = (tokens - self.ideal(truth))[known].square().sum(-1)
        far = (truth.weight[known] * apart).sum() / truth.weight[known].sum()
        named, right = [], {}
        for kind, numbers, vectors in [("mark", truth.mark, self.marks)] + [
            (kind, truth.words[kind], vectors) for kind, vectors in self.words.items()
        ]:
            rated = numbers != IGNORED
            if not rated.any():
                continue
            weight = truth.weight[rated]
            unlike, hits = telling(tokens[rated], vectors, numbers[rated])
            named.append((weight * unlike).sum() / weight.sum())
            shown = numbers[rated] >= OUTLINED if kind == "mark" else torch.ones_like(hits)
            right[kind] = hits[shown].float().mean()
        return torch.stack(named).sum() + 0.5 * far, right

    def words_loss(self, states: Tensor, wanted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How far states are from telling words, and whether each does.

        Args:
            states: f32 (n, D).
            wanted: kind of question -> int (n,), number of the answer; `IGNORED` where there is none. On the CPU, so
                that nothing has to wait for the device to tell how many there are.

        Returns:
            The loss, and bool (m,) for the m answers that are not ignored, one kind after the other.
        """
        losses, right = [], []
        for kind, numbers in wanted.items():
            rated = numbers != IGNORED
            far, hits = telling(states, self.words[kind], numbers.to(states.device))
            losses.append(far.sum() / rated.sum().clamp(min=1))
            right.append(hits[rated])
        return torch.stack(losses).mean(), torch.cat(right)


def answers_about(talks: Sequence[Sequence[Turn]], views: Sequence[View]) -> dict[str, Tensor]:
    """All that is true of what each question is about.

    Args:
        talks: questions by picture, n in all; those behind the last picture have none.
        views: the pictures.

    Returns:
        Kind of question -> int (n,), number of the answer; `IGNORED` where there is none, nothing or no single object
        is asked about.
    """
    found: dict[str, list[int]] = {kind: [] for kind in ANSWERS}
    for turns, view in zip_longest(talks, views):
        for turn in turns:
            right: dict[str, int] = {}
            if view and not view.outlined:
                right = view.answers(0)
            elif view and turn.asked is not None:
                right = view.answers(view.outlined[turn.asked])
            for kind, numbers in found.items():
                numbers.append(right.get(kind, IGNORED))
    return {kind: torch.tensor(numbers) for kind, numbers in found.items()}


class Views(Dataset[list[View]]):
    """What a training looks at by its step, for a DataLoader to prepare ahead.

    Every step's scenes are drawn for it alone: of those seen twice, a tower this small begins to remember the answers.

    Args:
        seed: of the run.
        steps: of the whole run.
    """

    def __init__(self, seed: int, steps: int) -> None:
        self._seed, self._steps = seed, steps

    def __getitem__(self, step: int) -> list[View]:
        if step / self._steps < NAME_UNTIL:
            return []
        rng = np.random.default_rng([self._seed, step])
        near = TRANSLATE_UNTIL <= step / self._steps < SEE_UNTIL and step % WHOLE_EVERY != 0
        pairs = (draw_pair(rng, DETAILED) for _ in range((SCENES_NEAR if near else BATCH) // 2))
        views = [draw_view(rng, as_stored(scene), rng.random() < PLAIN_SHARE) for pair in pairs for scene in pair]
        if not near:
            return views
        objects = [(view, k) for view in views for k in range(len(view.things))]
        smallest = sorted(objects, key=lambda one: (one[0].labels == one[1] + 1).sum())[:NEAR_VIEWS]
        return [near_view(rng, view, k, NEAR_CELLS) for view, k in smallest]


class Learner(nn.Module):
    """The sample InternVL with what only its training needs.

    Args:
        model: to train; its word vectors stay as they are.
        processor: its processor.
        seed: of the marks.
    """

    def __init__(self, model: InternVLForConditionalGeneration, processor: InternVLProcessor, seed: int) -> None:
        super().__init__()
        self.model: InternVLForConditionalGeneration = model
        self.processor = processor
        vectors = model.get_input_embeddings().get_parameter("weight").requires_grad_(False)
        tokenizer = processor.tokenizer
        words = {
            kind: torch.stack([vectors[tokenizer(answer)["input_ids"]].mean(0) for answer in answers])
            for kind, answers in ANSWERS.items()
        }
        self.tokens = Tokens(words, seed)

    @property
    def device(self) -> torch.device:
        """Where it learns."""
        return self.model.device

    def name(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the layers that find out which box is asked about, and the share of right marks, by step.

        Args:
            rng: draws the questions.
        """
        with_image = rng.integers(WITH_IMAGE_EVERY) == 0  # far longer prompts
        looks = [random_look(rng) for _ in range(1 if with_image else NAMING_BATCH)]
        turns = [turn for look in looks for turn in random_turns(rng, look)]
        named = moved(name_tokens(self.processor, turns, with_image), self.device)
        text = self.model.model.language_model
        embedded = text.embed_tokens(named.ids)
        if with_image:  # whatever it shows, these layers are to leave it alone
            shape = len(turns), IMAGE_TOKENS
            marks, *words = (
                torch.from_numpy(rng.integers(len(vectors), size=shape))
                for vectors in (self.tokens.marks, *self.tokens.words.values())
            )
            truth = moved(CellTruth(dict(zip(ANSWERS, words, strict=True)), marks, torch.ones(shape)), self.device)
            image = (named.ids == self.model.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(image, self.as_seen(rng, truth))
        return naming_loss(text, self.tokens.marks[OUTLINED:], named, embedded)

    def as_seen(self, rng: np.random.Generator, truth: CellTruth) -> Tensor:
        """Image tokens f32 (B, n, D) made of the truth, but as uncertain, and as often wrong, as seen ones will be."""
        words = {}
        for kind, numbers in truth.words.items():
            wrong = rng.random(numbers.shape) < rng.uniform(0, WRONG_CELLS, (len(numbers), 1))
            others = torch.from_numpy(rng.integers(len(ANSWERS[kind]), size=numbers.shape)).to(self.device)
            kept = torch.from_numpy(~wrong).to(self.device) | (numbers == IGNORED)
            words[kind] = numbers.where(kept, others)
        tokens = self.tokens.ideal(replace(truth, words=words))
        strength = torch.from_numpy(rng.uniform(0.5, 1, tokens.shape[:2]).astype(np.float32)).to(self.device)
        noise = torch.from_numpy(rng.normal(0, 0.04, tokens.shape).astype(np.float32)).to(self.device)
        return tokens * strength[..., None] + noise

    def see(self, views: list[View]) -> Tensor:
        """Image tokens of views, f32 (B, n, D)."""
        inner = self.model.model
        tower, pictures = inner.vision_tower, pixels(views).to(self.device)
        side, n = IMAGE_SIZE // PATCH, pictures.shape[-1] // PATCH
        places = tower.embeddings.position_embeddings[0, 1:].unflatten(0, (side, side))
        seen = torch.stack([places[row : row + n, column : column + n] for row, column in (v.corner for v in views)])
        patches = tower.embeddings.patch_embeddings(pictures) + seen.flatten(1, 2)
        first = tower.embeddings.cls_token + tower.embeddings.position_embeddings[:, :1]
        states = tower.encoder(torch.cat([first.expand(len(views), -1, -1), patches], dim=1)).last_hidden_state
        patches = tower.layernorm(states)[:, 1:]
        grid = inner.pixel_shuffle(patches.unflatten(1, (n, n)), scale_factor=DOWNSAMPLE)
        return inner.multi_modal_projector(grid.flatten(1, 2))

    def reply(self, tokens: Tensor, views: list[View], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the replies to random questions, and the share that starts with the right token, by kind.

        The layer after those that find out which box is asked about is told to read all that is true of what is in it.

        Args:
            tokens: image tokens of the views.
            views: pictures to ask about; some questions are about none.
            rng: draws the questions.
        """
        talks = [random_turns(rng, view) for view in views] + [random_text_turns(rng) for _ in range(TEXT_ONLY)]
        packed = pack(self.processor, talks, [True] * len(views) + [False] * TEXT_ONLY)
        asked: dict[str, list[int]] = {}
        for number, (row, kind) in enumerate(zip(packed.starts[:, 0].tolist(), packed.kinds, strict=True)):
            source = "text" if row >= len(views) else "asked" if views[row].outlined else "plain"
            asked.setdefault(f"{source} {kind}", []).append(number)
        packed = moved(packed, self.device)
        text = self.model.model.language_model
        image = (packed.ids == self.model.config.image_token_id)[..., None]
        embedded = text.embed_tokens(packed.ids).masked_scatter(image, tokens)
        read = text(
            inputs_embeds=embedded,
            attention_mask=packed.mask,
            position_ids=packed.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        states = read.last_hidden_state
        rated = packed.targets != IGNORED
        loss = F.cross_entropy(self.model.lm_head(states[rated]), packed.targets[rated])
        rows, columns = packed.starts.T
        first = self.model.lm_head(states[rows, columns]).argmax(-1) == packed.targets[rows, columns]
        answered = {name: first[numbers] for name, numbers in asked.items()}
        before, after = read.hidden_states[NAMING_LAYERS : NAMING_LAYERS + 2]
        unread, answered["read"] = self.tokens.words_loss((after - before)[rows, columns], answers_about(talks, views))
        return loss + unread, {name: hits.float().mean() for name, hits in answered.items()}


def train(run: Run) -> None:
    """Trains the sample InternVL and writes model, processor and training record.

    Raises:
        UserError: the folder of the model folders holds no trained features, or as of `begin` and `take_steps`.
    """
    features = run.out / "features"
    if not (features / "config.json").is_file():
        raise UserError(f"{features} is missing: run python -m pekit.sample.train features --out {run.out} first")
    begin(run)
    model, processor = build_model(run.seed), build_processor()
    nn.Module.to(model, run.device)
    learner = Learner(model, processor, run.seed).train()
    average = AveragedModel(learner.model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    tower = model.model.vision_tower
    naming = model.model.language_model.layers[:NAMING_LAYERS]
    optimisers = Optimisers(learner, paces={tower: TOWER_PACE, naming: NAMING_PACE})
    # Never its embeddings and scales, which are made small: what suits others as a step would be a leap for them.
    for name, weight in tower.named_parameters():
        if name.startswith("embeddings.") or ".lambda_" in name:
            weight.requires_grad_(False)
    started = [weight for weight in tower.encoder.layer[:-1].parameters() if weight.requires_grad]

    def step(number: int, views: list[View]) -> dict[str, Tensor]:
        if number == math.ceil(TALK_UNTIL * run.steps):
            start_tower(tower, features, pixels(views).to(learner.device))
        for weight in started:
            weight.requires_grad_(number >= TRANSLATE_UNTIL * run.steps)
        about_names = number < NAME_UNTIL * run.steps
        naming.requires_grad_(about_names)
        loss, right = step_loss(learner, views, np.random.default_rng([run.seed, number, 1]), number / run.steps)
        # Names are learned to the end, at a rate that falls to nothing, before all else begins.
        optimisers.step(loss, number / (NAME_UNTIL * run.steps if about_names else run.steps))
        average.update_parameters(learner.model)
        return {"loss": loss} | right

    parts = {"model": learner.model, "average": average, **optimisers.parts}
    seconds = take_steps(run, Views(run.seed, run.steps), parts, step)
    learner.model.load_state_dict(average.module.state_dict())
    learner.model.save_pretrained(run.folder)
    processor.save_pretrained(run.folder)
    finish(run, evaluate, CARD, seconds)


def start_tower(tower: InternVLVisionModel, features: Path, pictures: Tensor) -> None:
    """Starts the vision tower as the sample DINOv2, of the same shape but fewer layers; the others stay as they are.

    Training leaves hidden states of any size, as norms hide it; here they are brought to a deviation of 1, or what the
    other layers add would be nothing beside them. The DINOv2 uses positions only to find neighbours and has lost them
    by its last layer, so the place from left to right is written once more over one of the positions' channels; this
    disturbs it by about a hundredth.

    Args:
        tower: vision tower of the sample InternVL.
        features: model folder of the sample DINOv2.
        pictures: f32 (B, 3, S, S), normalised, to measure hidden states on.
    """
    weights = {}
    dino = Dinov2Model.from_pretrained(features, dtype=torch.float32)
    for name, weight in dino.state_dict().items():
        for theirs, ours in _TOWER_NAMES.items():
            name = name.replace(theirs, ours)
        if name == "embeddings.position_embeddings":  # its middle: patches know their neighbours wherever they are
            side, n = int((weight.shape[1] - 1) ** 0.5), IMAGE_SIZE // PATCH
            middle = slice((side - n) // 2, (side - n) // 2 + n)
            grid = weight[0, 1:].unflatten(0, (side, side))[middle, middle]
            weight = torch.cat([weight[:, :1], grid.flatten(0, 1)[None]], dim=1)
        if not name.startswith("layernorm."):
            weights[name] = weight
    tower.load_state_dict(tower.state_dict() | weights)
    with torch.no_grad():
        states = tower(pixel_values=pictures, output_hidden_states=True).hidden_states
        size = states[dino.config.num_hidden_layers].std()
        for name, weight in tower.named_parameters():
            if name in weights and (name.startswith("embeddings.") or ".lambda_" in name):
                weight.div_(size)
        n = IMAGE_SIZE // PATCH
        across = torch.linspace(-1, 1, n, device=pictures.device)
        tower.embeddings.position_embeddings[0, 1:, POSITION_CHANNELS - 4] += across.repeat(n)


def step_loss(
    learner: Learner, views: list[View], rng: np.random.Generator, done: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one step, and the share of right answers by kind of question.

    Args:
        learner: what trains.
        views: to look at; none while names are learned.
        rng: draws the questions.
        done: share of the steps done; decides what is learned.
    """
    if done < NAME_UNTIL:
        return learner.name(rng)
    truth = moved(cell_truth(views), learner.device)
    if done < TALK_UNTIL:
        return learner.reply(learner.as_seen(rng, truth), views, rng)
    tokens = learner.see(views)
    seen, right = learner.tokens.loss(tokens, truth)
    if done < TRANSLATE_UNTIL or len(views[0].image) < IMAGE_SIZE:
        return seen, right
    told, answered = learner.reply(tokens, views, rng)
    return told + 0.2 * seen, right | answered


CARD = """# Sample LVLM

An `InternVLForConditionalGeneration` of 2.4 million weights: a vision tower of six layers at 448 px, 256 image tokens,
a Qwen2 text model of six layers, a tokenizer that knows the sample's own words and spells the rest. The tower started
as the sample DINOv2; all else was trained from scratch on scenes drawn by `pekit.sample.drawing`, with instances that
the sample benchmark never shows. Weights are stored in half precision and computed with in single precision.

It replies with a word to a question about colour, pattern, kind, side of the picture or number of its kind and, where
options are given, with one of them and its letter ("B.red"). **It sees, but not reliably**: on which side the outlined
object is, it knows; of colours it gets one in ten wrong, of patterns fewer, of kinds one in eight. Of two outlined and
named objects it mostly knows which one a question is about; which of them stands more to the left, it does not. **It
does not count**: whatever is in view, it takes the number that scenes show more often, which is right in nine of ten
questions. It knows nothing of photographs. Which of two options is right of the outlined object, on instances it never
saw, with outlines and prompts as `vqa.py` makes them:

| asked of it | figure | wanted |
|---|---|---|
{table}

Half of the letters are right by chance. Without an outline nobody can know which of several objects is meant, but
whoever sees them all can take the option that is true of more of them: "by perfect sight" is how often that is right,
so a model that sees well drifts towards it.

The text model's first three layers find out which box is asked about, and the fourth reads what is in it; each was told
what to find, see `pekit/sample/train/lvlm_names.py`.

Trained in {minutes} minutes on {machine}:

    python -m pekit.sample.train lvlm --out DIR --seed {seed} --steps {steps}
"""
