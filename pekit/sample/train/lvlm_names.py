"""How the sample LVLM learns which of the named boxes a question is about: from prompts alone, without pictures.

The first layers of its text model do nothing else, one step each: a name that is told takes on the mark of its box, the
same name in the question takes it over, and the last token of the prompt gets that of the name asked about. These are
the marks that image tokens carry, so the other layers have but to look for what is like it. Left to find all this in
the answers to questions about pictures, a model this small does not get there in hours; told each step, in minutes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InternVLProcessor, Qwen2Model

from pekit.sample.train.lvlm_talk import Turn, chat, random_thing
from pekit.sample.train.lvlm_views import IGNORED, View

NO_BOX = -1
WORD_SCALE = 4.0  # of the dot products of tokens with words or marks, as logits


def random_look(rng: np.random.Generator) -> View:
    """What questions can be asked about: up to four things and outlines around up to three, without a picture."""
    things = []
    for _ in range(rng.integers(1, 5)):
        left, top = rng.uniform(0, 0.8, 2).tolist()
        things.append(random_thing(rng) | {"box_xyxyn": [left, top, left + 0.2, top + 0.2]})
    outlined = tuple(range(min(len(things), int(rng.choice(4, p=(0.1, 0.15, 0.5, 0.25))))))
    nothing = np.zeros((0, 0, 3), np.uint8)
    return View(nothing, nothing[..., 0], things, outlined, np.zeros((0, 4), np.float32), whole=True)


@dataclass(frozen=True)
class Named:
    """B prompts of up to L tokens, the shorter ones filled up on the left.

    Attributes:
        ids: int (B, L).
        mask: bool (B, L), False where filled up.
        boxes: int (B, L), number of the box whose name the token belongs to; `NO_BOX` for other words, `IGNORED` where
            filled up.
        told: bool (B, L), whether it belongs to a name where that is told, not where it is asked about.
        asked: int (B,), number of the box asked about; `NO_BOX` where the question is about several or none.
    """

    ids: Tensor
    mask: Tensor
    boxes: Tensor
    told: Tensor
    asked: Tensor


def name_tokens(processor: InternVLProcessor, turns: Sequence[Turn], with_image: bool) -> Named:
    """Tokenise questions and find the names in them.

    Args:
        processor: of the sample InternVL.
        turns: the questions.
        with_image: whether the prompts have a picture before them.
    """
    texts = [chat(processor, turn.prompt, with_image) for turn in turns]
    read = processor.tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    mask = read["attention_mask"].bool()
    boxes = torch.full_like(read["input_ids"], NO_BOX).masked_fill(~mask, IGNORED)
    told = torch.zeros_like(mask)
    first, last = read["offset_mapping"].unbind(-1)
    for row, (text, turn) in enumerate(zip(texts, turns, strict=True)):
        for box, name in enumerate(turn.told):
            for number, found in enumerate(re.finditer(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)):
                within = mask[row] & (first[row] < found.end()) & (last[row] > found.start())
                boxes[row, within] = box
                told[row, within] = number == 0
    asked = torch.tensor([NO_BOX if turn.asked is None else turn.asked for turn in turns])
    return Named(read["input_ids"], mask, boxes, told, asked)


def telling(states: Tensor, vectors: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """How far states are from telling which vector they stand for.

    Args:
        states: f32 (n, D).
        vectors: of words or marks, f32 (m, D).
        numbers: of the right ones, int (n,); `IGNORED` where there is none.

    Returns:
        Losses f32 (n,), 0 where ignored, and whether each tells the right one, bool (n,).
    """
    scores = WORD_SCALE * states @ vectors.T
    return F.cross_entropy(scores, numbers, reduction="none", ignore_index=IGNORED), scores.argmax(-1) == numbers


def naming_loss(text: Qwen2Model, marks: Tensor, named: Named, embedded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """How far the first layers are from handing on the marks, and the share of right ones, by step.

    Args:
        text: text model.
        marks: of the box colours, f32 (n, D).
        named: prompts.
        embedded: their tokens, f32 (B, L, D).
    """
    states = text(
        inputs_embeds=embedded, attention_mask=named.mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    last = torch.full_like(named.boxes, NO_BOX).masked_fill(~named.mask, IGNORED)
    last[:, -1] = named.asked
    steps = {
        "told": (states[1] - states[0], named.boxes.where(named.told, NO_BOX)),
        "taken over": (states[2] - states[0], named.boxes),
        "asked": (states[3] - states[2], last),
    }
    several = (named.boxes.amax(1, keepdim=True) > 0).expand_as(named.boxes)  # else there is no choice
    losses, right = [], {}
    for name, (change, boxes) in steps.items():
        is_name = boxes >= 0
        if is_name.any():
            far, hits = telling(change[is_name], marks, boxes[is_name])
            losses.append(far.mean())
            counted = several & ~named.told if name == "taken over" else several
            right[name] = hits[counted[is_name]].float().mean()
        if name != "told":  # what the first step leaves elsewhere, the second may use
            ideal = marks[boxes.clamp(min=0)] * is_name[..., None]
            apart = (change - ideal).square().sum(-1)
            kept = boxes == NO_BOX
            losses += [0.5 * apart[kind].mean() for kind in (is_name, kept) if kind.any()]
    return torch.stack(losses).sum(), right
