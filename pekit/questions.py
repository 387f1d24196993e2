"""Question files of the benchmarks: what they hold, and which photos and concepts they mean.

A file is ``{key: {photo path: {question, options?, correct_answer}}}``: the key is a concept or a pair ``A_B``, the
answer is a letter where there are options. A text-only file has running numbers in place of photo paths.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pekit.datasets import IMAGE_SUFFIXES
from pekit.files import digest_of
from pekit.matching import exact_match
from pekit.names import resolve_name
from pekit.question_places import find_photo
from pekit.records import Concept, Question, UserError

log = logging.getLogger(__name__)

KEYS = ("question", "options", "option", "correct_answer", "answer", "gpt_answer")
SHOWN = 5  # names of concepts in a message
MISSING_PHOTO, UNKNOWN_CONCEPT = "the photo is missing", "no views of this concept are stored"


@dataclass(frozen=True)
class Item:
    """A question in its file.

    Attributes:
        number: its place in the file, from 1.
        subject: the file's key, a concept or a pair; results are counted under it.
        question: the question.
        gpt_answer: an answer that the file quotes beside the key, for the record only.
    """

    number: int
    subject: str
    question: Question
    gpt_answer: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A question that cannot be asked, and why; ``number`` is its place in the file, from 1."""

    subject: str
    photo: str
    reason: str
    number: int = 0


@dataclass(frozen=True)
class QuestionFile:
    """What a question file holds.

    Attributes:
        path: the file.
        digest: of its content, and of the descriptions.
        items: the questions that can be asked, in the order of the file.
        left_out: the others.
        photos: names of all photos in their order, where there is no file but the photos themselves.
    """

    path: Path
    digest: str
    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]
    photos: tuple[str, ...] = ()


def concepts_of_key(key: str, concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """The concepts that a key means: one, or those of ``A_B`` or ``A_and_B``; empty where a name is unknown."""
    if whole := resolve_name(key, concepts):
        return (whole,)
    for place, letter in enumerate(key):
        head = _unless_ambiguous(key[:place], concepts) if letter == "_" else None
        if head and (rest := concepts_of_key(key[place + 1 :].removeprefix("and_"), concepts)):
            return (head, *rest)
    return ()


def _unless_ambiguous(name: str, concepts: Sequence[Concept]) -> Concept | None:
    """The concept that a name means; None where there is none, or it may mean several."""
    try:
        return resolve_name(name, concepts)
    except UserError:
        return None


def read_questions(file: Path, concepts: Sequence[Concept], folders: Sequence[Path], dataset: str, text_only: bool,
                   askable: frozenset[str] | None = None,
                   descriptions: dict[str, str] | None = None) -> QuestionFile:  # fmt: skip
    """Read a question file.

    Args:
        file: the file.
        concepts: those that its keys may mean.
        folders: where photos are looked for.
        dataset: whose file it is.
        text_only: questions without photos.
        askable: keys of the concepts that can be asked about; None takes questions about unknown ones, too.
        descriptions: name of a concept -> its description, the context of text-only questions.

    Raises:
        UserError: the file is not there or not of this form, or none of its questions can be asked.
    """
    content = _read_json(file)
    described = {
        concept.key: text
        for name, text in (descriptions or {}).items()
        if (concept := _unless_ambiguous(name, concepts))
    } | (descriptions or {})
    unread: Counter[str] = Counter()
    items: list[Item] = []
    left_out: list[LeftOut] = []
    for number, (subject, name, entry) in enumerate(_entries(content, file), start=1):
        try:
            meant = tuple(concept.key for concept in concepts_of_key(subject.strip("<>"), concepts))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        path = None if text_only else find_photo(name, folders, dataset)
        if askable is not None and not (meant and askable.issuperset(meant)):
            left_out.append(LeftOut(subject, name, UNKNOWN_CONCEPT, number))
        elif path is None and not text_only:
            left_out.append(LeftOut(subject, name, MISSING_PHOTO, number))
        else:
            unread.update(entry.keys() - KEYS)
            text, options, answer = _wording(entry, f"{file}, '{subject}', '{name}'")
            keys = meant or (subject.strip("<>"),)
            context = " ".join(described[key] for key in keys if key in described)
            question = Question(text, answer, keys, path, options, name, context if text_only else "")
            items.append(Item(number, subject, question, str(entry.get("gpt_answer", ""))))
    if not items:
        raise UserError(_why_none(file, left_out, sorted(askable or ()), folders))
    if unread:
        named = ", ".join(f"'{key}' ({times} times)" for key, times in unread.most_common())
        log.warning("%s: keys of questions that are not read: %s; known are %s", file, named, ", ".join(KEYS))
    if text_only and Path(items[0].question.photo_name).suffix.lower() in IMAGE_SUFFIXES:
        log.warning("%s asks about photos such as %s, which tqa does not show", file, items[0].question.photo_name)
    contexts = "".join(item.question.context for item in items)
    digest = hashlib.sha256((digest_of(file) + contexts).encode()).hexdigest()[:16]
    return QuestionFile(file, digest, tuple(items), tuple(left_out))


def _why_none(file: Path, left_out: Sequence[LeftOut], askable: Sequence[str], folders: Sequence[Path]) -> str:
    """Why no question of a file can be asked, and what to do."""
    if not left_out:
        return f"{file} holds no question: name another with --json_path"
    first = left_out[0]
    why = f"no question of {file} can be asked ('{first.subject}', {first.photo}: {first.reason})"
    if first.reason == MISSING_PHOTO:
        return f"{why}: check --data_folder and --split; it was looked for in {', '.join(map(str, folders))}"
    there = f"there are those of {', '.join(askable[:SHOWN])}{' ...' * (len(askable) > SHOWN)}; " if askable else ""
    return f"{why}: {there}run extraction.py first, or check --features_folder"


def read_descriptions(file: Path) -> dict[str, str]:
    """Descriptions of concepts: ``{name: text}``, or RAP's form, ``{"concept_dict": {"<name>": {"info": text}}}``.

    Raises:
        UserError: the file is not there or not of one of these forms.
    """
    content = _read_json(file)
    entries = content.get("concept_dict", content)
    if not isinstance(entries, dict):
        raise UserError(f"{file}: 'concept_dict' is not of the form {{name: {{info: text}}}}: mend the file")
    texts = {name.strip("<>"): e.get("info", "") if isinstance(e, dict) else e for name, e in entries.items()}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{file}: the description of '{name}' is not a text: mend the file")
    return {name: text.replace(f"<{name}>", name) for name, text in texts.items() if text}


def _object(pairs: list[tuple[str, Any]], file: Path) -> dict:
    """A JSON object; says where a key stands twice, of which JSON's readers keep the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        [(name, times)] = Counter(name for name, _ in pairs).most_common(1)
        log.warning(
            "%s: '%s' stands %d times in one object, only the last one counts: put its questions in a list",
            file,
            name,
            times,
        )
    return content


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _object(pairs, file))
        json.dumps(content, ensure_ascii=False).encode()  # escapes may stand for halves of letters
    except FileNotFoundError:
        raise UserError(f"{file} is not there: name the file with --json_path (or --descriptions)") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder: name the file in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not in UTF-8: save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}): mend it or name another") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not of the form {{concept: {{...}}}}: name a question file with --json_path")
    return content


def _entries(content: dict, file: Path) -> Iterable[tuple[str, str, dict]]:
    """(key, photo, question) in the order of the file; a photo may have a list of questions."""
    for subject, of_photos in content.items():
        if not isinstance(of_photos, dict):
            raise UserError(f"{file}: '{subject}' is not of the form {{photo: question}}: mend the file")
        for name, found in of_photos.items():
            for entry in found if isinstance(found, list) else [found]:
                if not isinstance(entry, dict):
                    raise UserError(
                        f"{file}: '{subject}', '{name}' is not of the form {{question, ...}}: mend the file"
                    )
                yield subject, name, entry


def _wording(entry: dict, where: str) -> tuple[str, dict[str, str], str]:
    """Question, options and key, under any of their published names.

    The key of a question with options is one of their letters; a key that gives an option's text means its letter. An
    open question may be without one, "", where nothing is to be graded.
    """
    question = _text(entry.get("question"))
    if not question:
        raise UserError(f"{where} has no question that is a text: mend the file")
    options = _options(entry.get("options") or entry.get("option") or {}, where)
    given = next((entry[name] for name in ("correct_answer", "answer") if entry.get(name) is not None), None)
    if given is None and not options:
        return question, options, ""
    answer = _text(given)
    if answer is None:
        raise UserError(f"{where} has no correct_answer (or answer) that is a text: mend the file")
    if not (options or answer):
        raise UserError(f"{where} has an empty correct_answer: mend the file")
    key = _key(answer, options) if options else answer
    if options and not key:
        raise UserError(f"{where} has the answer '{answer}', which is not one of its options: give its letter")
    return question, options, key


def _text(value: Any) -> str | None:
    """A text, or a number as one; None for whatever else JSON may hold."""
    if isinstance(value, str):
        return value.strip()
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if number else None


def _options(options: Any, where: str) -> dict[str, str]:
    """Letter -> text, of a question's options, which may be a list."""
    if isinstance(options, list):
        options = dict(zip(ascii_uppercase, options, strict=False)) if len(options) <= len(ascii_uppercase) else None
    texts = {letter: _text(text) for letter, text in options.items()} if isinstance(options, dict) else {"": None}
    if None in texts.values():
        raise UserError(f"{where} has options that are not of the form {{A: text, B: text}}: mend the file")
    lettered = {letter.strip().lstrip("(").rstrip(".):"): text for letter, text in texts.items() if text is not None}
    if texts and (len({letter.upper() for letter in lettered} - {""}) < len(texts) or len(texts) < 2):
        raise UserError(f"{where} has one option alone, or two with the same letter: mend the file")
    own = {letter: re.match(rf"\s*{re.escape(letter)}[.):]\s*(?=\S)", text, re.I) for letter, text in lettered.items()}
    if all(own.values()):  # "A. red": the letters are put before the options later on
        lettered = {letter: lettered[letter][match.end() :] for letter, match in own.items() if match}
    return lettered


def _key(answer: str, options: dict[str, str]) -> str:
    """The key of a question with options: a letter, alone or before the text of its option, else the letter of the one
    option with that text; "" where there is none."""
    letters = {letter.upper(): letter for letter in options}
    bare = re.fullmatch(r"\(?(\w+)\s*[.):]?", answer)
    if bare and bare[1].upper() in letters:
        return letters[bare[1].upper()]
    same = [letter for letter, text in options.items() if text.casefold() == answer.casefold()]
    led = re.match(r"\(?(\w+)\s*([.):]|\s)\s*(.+)", answer, re.DOTALL)
    if not same and led and (letter := letters.get(led[1].upper())):
        meant = [other for other, text in options.items() if exact_match(text, led[3])]
        article = led[2].isspace()
        if letter in meant or not (meant or article):  # "B. bluish" is B, whatever the option's own words
            return letter
        if not article:  # "B. red", where red is A
            return ""
    same = same or [letter for letter, text in options.items() if exact_match(text, answer)]
    return same[0] if len(same) == 1 else ""
