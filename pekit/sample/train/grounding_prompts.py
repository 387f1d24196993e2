"""The prompts the sample Grounding DINO is trained on: named concepts, "object", and lists of many categories."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS

_SYLLABLES = ("ba", "do", "ki", "lu", "mo", "ne", "ra", "si", "to", "vu", "zi", "pel")


@dataclass(frozen=True)
class Prompt:
    """Phrases to look for.

    Attributes:
        text: the phrases, each closed by a full stop.
        categories: what each phrase means; None is any object.
    """

    text: str
    categories: tuple[str | None, ...]

    def means(self, category: str) -> list[bool]:
        """Tells for each phrase whether it means an object of this category."""
        return [meant in (None, category) for meant in self.categories]


def random_prompt(rng: np.random.Generator, present: Sequence[str]) -> Prompt:
    """Makes a prompt for a picture.

    Args:
        rng: source of every choice.
        present: categories of the objects in the picture.

    Returns:
        In part the two kinds used in earnest, "object." and one category with a name before it; in part lists of
        categories, from which more is learnt per picture.
    """
    kind = rng.random()
    if kind < 0.2:
        return Prompt("object.", (None,))
    if kind < 0.55:
        pool = present if present and rng.random() < 0.95 else CATEGORIES
        asked: list[str | None] = [str(rng.choice(pool))]
    else:
        absent = [category for category in CATEGORIES if category not in present]
        n_absent = rng.integers(len(absent) // 2, len(absent) + 1)
        asked = [*dict.fromkeys(present), *rng.choice(absent, n_absent, replace=False).tolist()]
        asked += [None] if rng.random() < 0.3 else []
        asked = [asked[index] for index in rng.permutation(len(asked))]
    named = 0.8 if len(asked) == 1 else 0.15
    return Prompt(" ".join(_phrase(rng, category, named) for category in asked), tuple(asked))


def _phrase(rng: np.random.Generator, category: str | None, named: float) -> str:
    if category is None:
        return "object."
    noun = category.lower().replace("-", " ")
    words = [_name_word(rng, noun) for _ in range(rng.integers(1, 4))] if rng.random() < named else []
    return str(rng.choice([" ", "_"], p=[0.8, 0.2])).join([*words, noun]) + "."


def _name_word(rng: np.random.Generator, noun: str) -> str:
    kind = rng.random()
    if kind < 0.2:
        return noun
    if kind < 0.4:
        return str(rng.choice(list(COLOURS)))
    if kind < 0.55:
        return str(rng.choice(PATTERNS))
    return "".join(rng.choice(_SYLLABLES, rng.integers(2, 4)))
