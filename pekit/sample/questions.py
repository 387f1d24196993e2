"""The sample's question files: fixed wordings, in the published formats, with answers true by construction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pekit.names import without_category
from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS

Truth = dict[str, list[dict]]
"""Photo, relative to the sample's folder -> the things it shows."""

# What a question is about -> its wordings, and every answer it can have.
QUESTION_TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "colour": (("What colour is {name}?", "Which colour does {name} have?"), tuple(COLOURS)),
    "pattern": (("What pattern does {name} have?", "Which pattern is on {name}?"), PATTERNS),
    "category": (("What kind of object is {name}?", "What sort of thing is {name}?"), CATEGORIES),
    "side": (
        ("On which side of the picture is {name}?", "Which side of the picture is {name} on?"),
        ("left", "right"),
    ),
    "count": (
        ("How many objects of the same kind as {name} are in the picture?",),
        ("one", "two", "three", "four"),
    ),
}
ORDER_TEMPLATE = "Which is more to the left, {name} or {other}?"
TEXT_KINDS = ("colour", "pattern", "category")
LEAST_OFF_CENTRE = 0.1  # of the picture's width; nearer to the middle, left and right are a matter of opinion


def write_questions(out: Path, truth: Truth, rng: np.random.Generator) -> dict[str, int]:
    """Write the question files and the descriptions of the text-only ones.

    Args:
        out: the sample's folder.
        truth: what every photo shows.
        rng: everything random is drawn from it.

    Returns:
        Data set, as the sample's report names it -> number of questions.
    """
    visual = _visual_questions(rng, truth, "YoLLaVA/test/", "./yollava-data/test/", str, open_share=0)
    concepts = {thing["concept"]: thing for path in truth if "YoLLaVA/train/" in path for thing in truth[path]}
    text = _text_questions(rng, concepts)
    single_root, multi_root = "This-is-My-Img/Single-concept", "This-is-My-Img/Multi-concept"
    single = _visual_questions(
        rng, truth, f"{single_root}/test/Positive/", "./test/Positive/", without_category, open_share=1 / 3
    )
    multi = _pair_questions(rng, truth, f"{multi_root}/test/", "./test/")
    for name, content in {
        "YoLLaVA/yollava-visual-qa.json": visual,
        "YoLLaVA/yollava-text-qa.json": text,
        "YoLLaVA/descriptions.json": {key: describe(key, thing) for key, thing in concepts.items()},
        f"{single_root}/VQA/single-concept-vqa.json": single,
        f"{multi_root}/VQA/multi-concept-vqa.json": multi,
    }.items():
        file = out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return {
        "yollava": sum(map(len, (*visual.values(), *text.values()))),
        "this-is-my single-concept": sum(map(len, single.values())),
        "this-is-my multi-concept": sum(map(len, multi.values())),
    }


def describe(name: str, thing: dict) -> str:
    """A concept in words, as context of text-only questions."""
    article = "an" if thing["category"][0] in "aeiou" else "a"
    return (
        f"{name} is {article} {thing['category']}. Its colour is {thing['colour']}, "
        f"its pattern is {thing['pattern']} and its smaller parts are {thing['accent']}."
    )


def right_answer(kind: str, own: dict, things: Sequence[dict]) -> str | None:
    """The answer about one of the things a photo shows; None where the photo leaves room for doubt or for no mistake.

    Args:
        kind: key of ``QUESTION_TEMPLATES``.
        own: the thing asked about.
        things: everything in the photo, ``own`` included.
    """
    if kind == "side":
        offset = _centre(own) - 0.5
        return None if abs(offset) < LEAST_OFF_CENTRE else "left" if offset < 0 else "right"
    if kind == "count":
        count = sum(thing["category"] == own["category"] for thing in things)
        return QUESTION_TEMPLATES["count"][1][count - 1] if len(things) > 1 else None
    return own[kind]


def wrong_answer(rng: np.random.Generator, kind: str, own: dict, things: Sequence[dict]) -> str:
    """An answer that is false of the thing: a count next to the right one; else, where possible, one that is true of
    another thing in the photo."""
    answers = QUESTION_TEMPLATES[kind][1]
    right = right_answer(kind, own, things)
    false = [answer for answer in answers if answer != right and (kind != "colour" or answer != own["accent"])]
    if kind == "count":
        near = [answer for answer in false if abs(answers.index(answer) - answers.index(str(right))) == 1]
    else:
        near = [answer for answer in false if any(thing.get(kind) == answer for thing in things)]
    return str(rng.choice(near or false))


def two_options(right: str, wrong: str, letter: str) -> dict[str, str]:
    """Options A and B; ``letter`` is that of the right one."""
    return {"A": right, "B": wrong} if letter == "A" else {"A": wrong, "B": right}


def _centre(thing: dict) -> float:
    return (thing["box_xyxyn"][0] + thing["box_xyxyn"][2]) / 2


# --- the files ----------------------------------------------------------------------------------------------------


def _letters(rng: np.random.Generator) -> Iterator[str]:
    """The letters of right answers, as many A as B."""
    while True:
        yield from str(rng.choice(["AB", "BA"]))


def _wording(rng: np.random.Generator, kind: str, name: str) -> str:
    return str(rng.choice(QUESTION_TEMPLATES[kind][0])).format(name=name)


def _visual_questions(
    rng: np.random.Generator, truth: Truth, folder: str, written: str, subject: Callable[[str], str], open_share: float
) -> dict[str, dict[str, dict]]:
    """One question a photo, with two options or, for a share of them, open; all kinds about equally often."""
    questions: dict[str, dict[str, dict]] = {}
    used: Counter[str] = Counter()
    letters = _letters(rng)
    for i, path in enumerate(path for path in truth if path.startswith(folder)):
        things = truth[path]
        own = next(thing for thing in things if thing["concept"])
        is_open = int((i + 1) * open_share) > int(i * open_share)
        kind = _least_used(used, QUESTION_TEMPLATES, own, things, is_open)
        right = str(right_answer(kind, own, things))
        entry: dict = {"question": _wording(rng, kind, "<sks>")}
        if is_open:
            entry["answer"] = right
        else:
            wrong = wrong_answer(rng, kind, own, things)
            letter = next(letters)
            entry |= {"options": two_options(right, wrong, letter), "correct_answer": letter}
        questions.setdefault(subject(own["concept"]), {})[path.replace(folder, written)] = entry
    return questions


def _least_used(used: Counter[str], kinds: Iterable[str], own: dict, things: Sequence[dict], is_open: bool) -> str:
    """The kind asked least so far of those the photo answers; never an open question for a colour of two."""
    kinds = [
        kind
        for kind in kinds
        if right_answer(kind, own, things)
        and not (is_open and kind == "colour" and own["pattern"] not in ("plain", "dotted"))
    ]
    kind = min(kinds, key=lambda kind: used[kind])
    used[kind] += 1
    return kind


def _text_questions(rng: np.random.Generator, concepts: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """One question of each kind that a description answers, for each concept."""
    questions: dict[str, dict[str, dict]] = {}
    letters = _letters(rng)
    for key, own in concepts.items():
        for number, kind in enumerate(TEXT_KINDS):
            wrong = wrong_answer(rng, kind, own, [own])
            letter = next(letters)
            option = two_options(own[kind], wrong, letter)
            entry = {"question": _wording(rng, kind, "sks"), "option": option, "correct_answer": letter}
            questions.setdefault(key, {})[str(number)] = entry
    return questions


def _pair_questions(rng: np.random.Generator, truth: Truth, folder: str, written: str) -> dict[str, dict[str, dict]]:
    """One question a photo: every third with two options, about which concept is where; the others open, about one."""
    questions: dict[str, dict[str, dict]] = {}
    used: Counter[str] = Counter()
    letters = _letters(rng)
    for i, path in enumerate(path for path in truth if path.startswith(folder)):
        things = truth[path]
        names = path.removeprefix(folder).split("/")[0].split("_and_")
        pair = [next(t for t in things if t["concept"] and without_category(t["concept"]) == name) for name in names]
        if i % 3 == 0 and abs(_centre(pair[0]) - _centre(pair[1])) >= LEAST_OFF_CENTRE:
            left = int(_centre(pair[1]) < _centre(pair[0]))
            letter = next(letters)
            options = two_options(names[left], names[1 - left], letter)
            text = ORDER_TEMPLATE.format(name=names[0], other=names[1])
            entry: dict = {"question": text, "options": options, "correct_answer": letter}
        else:
            asked = int(rng.integers(2))
            kind = _least_used(used, ("side", "pattern", "colour", "count"), pair[asked], things, is_open=True)
            answer = right_answer(kind, pair[asked], things)
            entry = {"question": _wording(rng, kind, names[asked]), "answer": answer}
        questions.setdefault("_".join(names), {})[path.replace(folder, written)] = entry
    return questions
