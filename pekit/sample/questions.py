"""Questions about the drawn photos, with their true answers, in the formats of the published question files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS

KINDS = ("colour", "pattern", "category", "side", "count")
WORDING = {
    "colour": "What is the main colour of {}?",
    "pattern": "What pattern does {} have?",
    "category": "What kind of thing is {}?",
    "side": "On which side of the picture is {}?",
    "count": "How many things are in the picture?",
}
TEXT_WORDING = {kind: WORDING[kind] for kind in ("colour", "pattern", "category")}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
_CHOICES = {"colour": tuple(COLOURS), "pattern": PATTERNS, "category": CATEGORIES}
_CENTRED = 0.08  # nearer to the middle than this, a thing is on neither side

Things = Sequence[dict[str, Any]]


def answers(rng: np.random.Generator, kind: str, things: Things, which: int) -> tuple[str, str] | None:
    """The right answer to a question about one thing of a photo, and a wrong one.

    The wrong one is true of another thing in the photo where there is one, so that looking at the wrong thing shows.

    Args:
        rng: the choice of the wrong answer is drawn from it.
        kind: one of ``KINDS``.
        things: what the photo shows, as ``sample.json`` has it.
        which: index of the thing asked about.

    Returns:
        (right, wrong), or None where the question has no clear answer.
    """
    thing = things[which]
    if kind == "side":
        offset = (thing["box_xyxyn"][0] + thing["box_xyxyn"][2]) / 2 - 0.5
        if abs(offset) < _CENTRED:
            return None
        return ("left", "right") if offset < 0 else ("right", "left")
    if kind == "count":
        near = len(things) + (1 if len(things) == 1 or rng.random() < 0.5 else -1)
        return NUMBERS[len(things)], NUMBERS[near]
    right = thing[kind]
    excluded = {right, thing["accent"]}
    in_view = sorted({other[kind] for other in things} - excluded)
    return right, str(rng.choice(in_view or [choice for choice in _CHOICES[kind] if choice not in excluded]))


class Asker:
    """Words questions, going round the kinds and giving A and B as right answers equally often."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._kinds = count()
        self._letters: list[str] = []

    def pick(self, things: Things, which: int, kinds: Sequence[str] = KINDS) -> tuple[str, str, str]:
        """The next kind that has a clear answer: (kind, right, wrong)."""
        while True:
            kind = kinds[next(self._kinds) % len(kinds)]
            if found := answers(self.rng, kind, things, which):
                return kind, *found

    def with_options(self, question: str, right: str, wrong: str, options_key: str = "options") -> dict[str, Any]:
        """An item with two options."""
        if not self._letters:
            self._letters = [str(letter) for letter in self.rng.permutation(["A", "B"])]
        letter = self._letters.pop()
        options = {"A": right, "B": wrong} if letter == "A" else {"A": wrong, "B": right}
        return {"question": question, options_key: options, "correct_answer": letter}


def short(folder: str) -> str:
    """A folder's name without its category: ``Noras mug-mug`` -> ``Noras mug``."""
    return folder.rpartition("-")[0]


def question_files(rng: np.random.Generator, manifest: dict[str, Any]) -> dict[str, Any]:
    """Ask about the test photos.

    Args:
        rng: everything random is drawn from it.
        manifest: what ``sample.json`` holds.

    Returns:
        Path in the sample -> content of the file.
    """
    yollava, single, multi = "YoLLaVA", "This-is-My-Img/Single-concept", "This-is-My-Img/Multi-concept"
    return {
        f"{yollava}/yollava-visual-qa.json": _yollava(Asker(rng), _test_photos(manifest, f"{yollava}/test/")),
        f"{yollava}/yollava-text-qa.json": _text_only(Asker(rng), manifest["concepts"][yollava]),
        f"{yollava}/yollava-descriptions.json": {
            folder: describe(concept) for folder, concept in manifest["concepts"][yollava].items()
        },
        f"{single}/VQA/single-concept-vqa.json": _single(
            Asker(rng), _test_photos(manifest, f"{single}/test/Positive/")
        ),
        f"{multi}/VQA/multi-concept-vqa.json": _multi(Asker(rng), _test_photos(manifest, f"{multi}/test/")),
    }


def describe(concept: dict[str, Any]) -> str:
    """A concept in one sentence."""
    pattern = "" if concept["pattern"] == "plain" else f" {concept['pattern']}"
    return f"It is a {concept['colour']}{pattern} {concept['category']} with parts in {concept['accent']}."


def _test_photos(manifest: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, Things]]:
    """(folder, file name, things) of every photo below a path."""
    for path, photo in manifest["photos"].items():
        if path.startswith(prefix):
            folder, name = path.removeprefix(prefix).split("/")
            yield folder, name, photo["objects"]


def _index(things: Things, folder: str) -> int:
    return next(i for i, thing in enumerate(things) if thing["concept"] == folder)


def _yollava(asker: Asker, photos: Iterator[tuple[str, str, Things]]) -> dict[str, Any]:
    """Two options each; paths begin with the folder's name where the file was first written."""
    content: dict[str, Any] = {}
    for folder, name, things in photos:
        kind, right, wrong = asker.pick(things, _index(things, folder))
        item = asker.with_options(WORDING[kind].format("<sks>"), right, wrong)
        content.setdefault(folder, {})[f"./yollava-data/test/{folder}/{name}"] = item
    return content


def _text_only(asker: Asker, concepts: dict[str, Any]) -> dict[str, Any]:
    """No photo, the placeholder without brackets, and ``option`` for ``options``."""
    content: dict[str, Any] = {}
    for folder, concept in concepts.items():
        for number, (kind, wording) in enumerate(TEXT_WORDING.items()):
            _, right, wrong = asker.pick([concept], 0, [kind])
            item = asker.with_options(wording.format("sks"), right, wrong, "option")
            content.setdefault(folder, {})[str(number)] = item
    return content


def _single(asker: Asker, photos: Iterator[tuple[str, str, Things]]) -> dict[str, Any]:
    """Two options, and one question in four open."""
    content: dict[str, Any] = {}
    for number, (folder, name, things) in enumerate(photos):
        kind, right, wrong = asker.pick(things, _index(things, folder))
        question = WORDING[kind].format("<sks>")
        is_open = number % 4 == 3
        item = {"question": question, "answer": right} if is_open else asker.with_options(question, right, wrong)
        content.setdefault(short(folder), {})[f"./test/Positive/{folder}/{name}"] = item
    return content


def _multi(asker: Asker, photos: Iterator[tuple[str, str, Things]]) -> dict[str, Any]:
    """Open questions that spell the names out, and one in four with options; keys are ``A_B``."""
    content: dict[str, Any] = {}
    for number, (folder, name, things) in enumerate(photos):
        pair = [_named(things, part) for part in folder.split("_and_")]
        which = pair[number % 2]
        if number % 4 == 3:
            item = _compare(things, pair)
        else:
            kind, right, wrong = asker.pick(things, which)
            question = WORDING[kind].format(short(things[which]["concept"]))
            is_open = number % 4 != 1
            item = {"question": question, "answer": right} if is_open else asker.with_options(question, right, wrong)
        content.setdefault(folder.replace("_and_", "_"), {})[f"./test/{folder}/{name}"] = item
    return content


def _named(things: Things, name: str) -> int:
    return next(i for i, thing in enumerate(things) if thing["concept"] and short(thing["concept"]) == name)


def _compare(things: Things, pair: Sequence[int]) -> dict[str, Any]:
    """Ask which of two things is further to the left."""
    first, second = (short(things[i]["concept"]) for i in pair)
    middles = [things[i]["box_xyxyn"][0] + things[i]["box_xyxyn"][2] for i in pair]
    question = f"Which is further to the left, {first} or {second}?"
    return {"question": question, "answer": first if middles[0] < middles[1] else second}
