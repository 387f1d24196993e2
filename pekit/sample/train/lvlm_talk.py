"""What the sample LVLM is asked while it trains: prompts in the scripts' own words, several questions to a picture.

The questions about one picture share most of their prompt. They are laid out as a tree: the shared beginning once, then
each question's own rest, which sees the beginning and itself only. The model computes the same as on separate prompts,
in half the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import InternVLProcessor

from pekit.lvlm_interface import IMAGE, wrap
from pekit.prompting import box_prompt, text_prompt, with_options
from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS
from pekit.sample.questions import (
    LEAST_OFF_CENTRE,
    ORDER_TEMPLATE,
    QUESTION_TEMPLATES,
    TEXT_KINDS,
    describe,
    right_answer,
    two_options,
    wrong_answer,
)
from pekit.sample.train.lvlm_views import ANSWERS, IGNORED, View

QUESTIONS = 6
OPEN_SHARE = 0.35
ORDER_SHARE = 0.25  # of the questions about several outlined objects
_FALSE_OF_ALL = 0.3  # share of wrong options that are drawn at random
# A margin around the wordings of the sample's question files.
_MORE_WORDINGS = {
    "colour": ("What is the colour of {name}?",),
    "pattern": ("What is the pattern of {name}?",),
    "category": ("What is {name}?",),
    "side": ("Is {name} on the left or on the right side of the picture?",),
    "count": ("How many things of the same kind as {name} are there?",),
}


@dataclass(frozen=True)
class Turn:
    """One question to the model and the reply it should give.

    Attributes:
        kind: what is asked, with a 2 behind it where there are two options.
        prompt: the question with all that stands before it.
        reply: the right one.
        told: names that the prompt tells, in the order of the box colours.
        asked: number of the one asked about; None where there are no boxes, or several are asked about.
    """

    kind: str
    prompt: str
    reply: str
    told: tuple[str, ...] = ()
    asked: int | None = None


def random_turns(rng: np.random.Generator, view: View) -> list[Turn]:
    """Draw questions about the outlined objects of a view, or, where nothing is outlined, about any of its objects.

    Args:
        rng: source of every choice.
        view: the picture.
    """
    meant = view.outlined or (int(rng.integers(len(view.things))),)
    names = [random_name(rng, view.things[k]["category"]) for k in meant]
    told = tuple(names) if view.outlined else ()
    turns: list[Turn] = []
    for _ in range(QUESTIONS):
        if len(told) > 1 and rng.random() < ORDER_SHARE and (turn := order_question(rng, view, names)):
            turns.append(replace(turn, prompt=box_prompt(turn.prompt, told), told=told))
            continue
        place = int(rng.integers(len(meant)))
        kind = str(rng.choice(list(view.answers(meant[place]))))
        question = random_question(rng, kind, names[place], view.things[meant[place]], view.things)
        asked = place if told else None
        turns.append(replace(question, prompt=box_prompt(question.prompt, told), told=told, asked=asked))
    return turns


def random_text_turns(rng: np.random.Generator) -> list[Turn]:
    """Draw questions that a description in words answers."""
    own = random_thing(rng)
    name = random_name(rng, own["category"])
    turns = []
    for kind in rng.choice(TEXT_KINDS, QUESTIONS):
        question = random_question(rng, str(kind), name, own, [own])
        turns.append(Turn(question.kind, text_prompt(question.prompt, [name], describe(name, own)), question.reply))
    return turns


def random_thing(rng: np.random.Generator) -> dict[str, Any]:
    """The looks of a thing that is drawn nowhere."""
    looks = {"category": CATEGORIES, "colour": list(COLOURS), "accent": list(COLOURS), "pattern": PATTERNS}
    return {kind: str(rng.choice(answers)) for kind, answers in looks.items()}


def random_question(rng: np.random.Generator, kind: str, name: str, own: dict, things: Sequence[dict]) -> Turn:
    """Word one question, with two options or open.

    Args:
        rng: source of every choice.
        kind: key of `QUESTION_TEMPLATES`.
        name: of the object asked about.
        own: the object.
        things: everything in view.
    """
    right = str(right_answer(kind, own, things))
    wordings = QUESTION_TEMPLATES[kind][0] * 2 + _MORE_WORDINGS[kind]
    text = str(rng.choice(wordings)).format(name=name)
    if rng.random() < OPEN_SHARE:
        return Turn(kind, text, right)
    wrong = wrong_answer(rng, kind, own, things)
    if rng.random() < _FALSE_OF_ALL:
        wrong = str(rng.choice([a for a in ANSWERS[kind] if a != right and (kind != "colour" or a != own["accent"])]))
    return _options_turn(rng, kind, text, right, wrong)


def order_question(rng: np.random.Generator, view: View, names: Sequence[str]) -> Turn | None:
    """Ask which of two outlined objects is more to the left; None where neither is by much.

    Args:
        rng: source of every choice.
        view: the picture.
        names: of its outlined objects, two at least.
    """
    one, other = rng.permutation(len(names))[:2].tolist()
    centres = [sum(view.things[view.outlined[k]]["box_xyxyn"][::2]) / 2 for k in (one, other)]
    if abs(centres[0] - centres[1]) < LEAST_OFF_CENTRE:
        return None
    right, wrong = (names[one], names[other]) if centres[0] < centres[1] else (names[other], names[one])
    text = ORDER_TEMPLATE.format(name=names[one], other=names[other])
    return _options_turn(rng, "order", text, right, wrong)


def _options_turn(rng: np.random.Generator, kind: str, text: str, right: str, wrong: str) -> Turn:
    letter = "AB"[rng.integers(2)]
    return Turn(kind + "2", with_options(text, two_options(right, wrong, letter)), f"{letter}.{right}")


def random_name(rng: np.random.Generator, category: str) -> str:
    """An invented name: a word of random letters, with the category behind it now and then."""
    word = "".join(rng.choice(list(ascii_lowercase), rng.integers(3, 6)))
    return f"{word.capitalize()}s {category}" if rng.random() < 0.4 else word


@dataclass(frozen=True)
class Packed:
    """Trees of questions as a batch of B rows of L tokens.

    Attributes:
        ids: int (B, L).
        mask: bool (B, 1, L, L), who sees whom.
        positions: int (B, L), as in separate prompts.
        targets: int (B, L), the token that should follow, `IGNORED` outside replies.
        kinds: of the question behind each reply.
        starts: int (n, 2), row and column of each reply's first target.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    kinds: list[str]
    starts: torch.Tensor


def pack(processor: InternVLProcessor, talks: Sequence[Sequence[Turn]], with_image: Sequence[bool]) -> Packed:
    """Tokenise and lay out the questions of several pictures.

    Args:
        processor: of the sample InternVL.
        talks: questions, by picture.
        with_image: whether there is a picture, for each.
    """
    tokenizer = processor.tokenizer
    rows, kinds, starts = [], [], []
    for number, (turns, pictured) in enumerate(zip(talks, with_image, strict=True)):
        prompts = [tokenizer(chat(processor, turn.prompt, pictured))["input_ids"] for turn in turns]
        shared = 0
        while all(len(ids) > shared + 1 and ids[shared] == prompts[0][shared] for ids in prompts):
            shared += 1
        ids, branch, positions = prompts[0][:shared], [0] * shared, list(range(shared))
        targets = [IGNORED] * shared
        for place, (turn, prompt) in enumerate(zip(turns, prompts, strict=True), 1):
            reply = [*tokenizer(turn.reply)["input_ids"], tokenizer.eos_token_id]
            rest = prompt[shared:] + reply[:-1]
            kinds.append(turn.kind)
            starts.append((number, len(ids) + len(prompt) - shared - 1))
            targets += [IGNORED] * (len(prompt) - shared - 1) + reply
            ids = ids + rest
            branch += [place] * len(rest)
            positions += range(shared, shared + len(rest))
        rows.append((ids, branch, positions, targets))
    padded_ids, branches, places, wanted = (
        pad_sequence([torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=filler)
        for part, filler in enumerate((tokenizer.pad_token_id, -1, 0, IGNORED))
    )
    earlier = torch.ones(padded_ids.shape[1], padded_ids.shape[1], dtype=torch.bool).tril()
    mask = earlier & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))
    return Packed(padded_ids, mask[:, None], places, wanted, kinds, torch.tensor(starts))


def chat(processor: InternVLProcessor, prompt: str, with_image: bool) -> str:
    """The whole text of a turn as the model reads it, image tokens written out."""
    parts = wrap(prompt, "released", with_image, line_break="")
    content = [{"type": "image"} if part is IMAGE else {"type": "text", "text": part} for part in parts]
    text = cast(Any, processor).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    tokens = processor.image_token * processor.image_seq_length
    return text.replace(processor.image_token, f"{processor.start_image_token}{tokens}{processor.end_image_token}")
