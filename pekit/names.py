"""Names of concepts: as folders, grounding prompts, and texts spell them; the published ones."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pekit.records import Concept, UserError, counted

log = logging.getLogger(__name__)


@cache
def _published() -> dict:
    return json.loads((Path(__file__).parent / "concepts.json").read_text(encoding="utf-8"))


def published(dataset: str, multi_concept: bool = False) -> tuple[str, ...]:
    """The published concept names of a data set, in the order of its per-concept arrays."""
    return tuple(_published()[f"{dataset} multi-concept" if multi_concept else dataset])


def published_folders(dataset: str, multi_concept: bool = False) -> tuple[str, ...]:
    """The folders of the published concepts, in the same order: those of Yo'LLaVA leave the category out."""
    names = published(dataset, multi_concept)
    return tuple(map(without_category, names)) if dataset == "yollava" else names


def name_map(kind: str) -> dict[str, str]:
    """The released name maps of this-is-my: kind "display" (apostrophes) or "invented"."""
    return _published()[f"this-is-my {kind} names"]


def natural_key(name: str) -> tuple:
    """Sort key under which ``2.png`` comes before ``10.png``; no two names have the same."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts), name


def without_category(folder: str) -> str:
    """Drop the last ``-category`` part: ``pig-cup-cup`` -> ``pig-cup``, ``Alexs hat-hat`` -> ``Alexs hat``."""
    return folder.rpartition("-")[0] or folder


def concept_of_folder(dataset: str, folder: str) -> Concept:
    """The concept that a folder of photos stands for.

    The grounding prompt is the folder's name in lower case, ``-`` read as a space, closed with a full stop
    (the released extraction's wording).
    """
    prompt = folder.lower().replace("-", " ").strip().rstrip(".") + "."
    if dataset == "this-is-my":
        short = without_category(folder)
        name = name_map("display").get(short, short)
    else:
        name = folder.replace("_", " ")
    return Concept(folder, prompt, name)


@cache  # question files name the same concepts again and again
def folded(name: str) -> str:
    """A name as it is compared with others: without case, ``_``, apostrophes and the form of accented letters."""
    name = unicodedata.normalize("NFC", name).replace("\u2019", "'").replace("'", "")
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def resolve_name(short: str, concepts: Iterable[Concept]) -> Concept | None:
    """Find the concept that a short, display or folder name means.

    "Casey" is "Casey-man", "Caseys boosted board" is "Caseys boosted board-skateboard", and a list name such as
    "pig-cup-cup" is the folder "pig-cup". Case, ``_`` and apostrophes do not matter.

    Returns:
        The concept, or None where no concept has that name.

    Raises:
        UserError: several concepts have it.
    """
    concepts = tuple(concepts)
    for wanted, name_of in (
        (short, lambda concept: concept.key),
        (short, lambda concept: concept.name),
        (short, lambda concept: without_category(concept.key)),
        (without_category(short), lambda concept: concept.key),
    ):
        found = [concept for concept in concepts if folded(name_of(concept)) == folded(wanted)]
        if len(found) > 1:
            folders = " or ".join(concept.key for concept in found)
            raise UserError(f'"{short}" may mean the concept {folders}: use the whole name, or rename one folder')
        if found:
            return found[0]
    return None


# --- the published order ------------------------------------------------------------------------------------------


def _published_index(dataset: str, multi_concept: bool) -> dict[str, int]:
    index = {}
    names, folders = published(dataset, multi_concept), published_folders(dataset, multi_concept)
    for i, (name, folder) in enumerate(zip(names, folders, strict=True)):
        index[folded(folder)] = i
        index.setdefault(folded(name), i)
    return index


def in_published_order(folders: list[str], dataset: str, multi_concept: bool) -> list[str]:
    """Put folders in the published order, others behind; name in a warning what is missing and what is extra."""
    index = _published_index(dataset, multi_concept)
    names = published(dataset, multi_concept)
    known = [folder for folder in folders if folded(folder) in index]
    extra = [folder for folder in folders if folded(folder) not in index]
    known.sort(key=lambda folder: index[folded(folder)])
    found = {index[folded(folder)] for folder in known}
    missing = [name for i, name in enumerate(names) if i not in found]
    if not known:
        log.warning(
            "%s: none of the %d published concepts is here; taking what is found, %s: %s",
            dataset,
            len(names),
            counted(len(extra), "folder"),
            ", ".join(extra),
        )
    elif missing or extra:
        log.warning(
            "%s: %d of the %d published concepts are here; missing: %s; not in the published list: %s",
            dataset,
            len(known),
            len(names),
            ", ".join(missing) or "none",
            ", ".join(extra) or "none",
        )
    return known + extra
