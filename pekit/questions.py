"""Question files of the benchmarks: where they lie, what they hold, which photos and concepts they mean.

A file is ``{key: {photo path: {question, options?, correct_answer}}}``: the key is a concept or a pair ``A_B``, the
answer is a letter where there are options. A text-only file has running numbers in place of photo paths.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pekit.datasets import IMAGE_SUFFIXES, ROOTS, check_part, concept_folders, find_root, split_folder
from pekit.files import digest_of
from pekit.matching import exact_match
from pekit.names import concept_of_folder, folded, published, resolve_name, without_category
from pekit.records import Concept, Question, UserError

log = logging.getLogger(__name__)

USUAL_PLACES = {
    ("yollava", False): (
        "yollava-visual-qa.json",
        "../yollava-visual-qa.json",
        "*visual*qa*.json",
        "../yollava-data/*visual*qa*.json",
    ),
    ("yollava", True): ("*text*qa*.json", "../*text*qa*.json", "*text*only*.json"),
    ("this-is-my", False): ("VQA/*.json", "../VQA/*.json"),
    ("this-is-my", True): ("TQA/*.json", "*text*qa*.json"),
}


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


KEYS = ("question", "options", "option", "correct_answer", "answer", "gpt_answer")
DESCRIPTIONS = "*descriptions*.json"
SHOWN = 5  # names of concepts in a message
MISSING_PHOTO, UNKNOWN_CONCEPT = "the photo is missing", "no views of this concept are stored"


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


# --- places -------------------------------------------------------------------------------------------------------


def find_question_file(data_folder: Path, dataset: str, multi_concept: bool, text_only: bool) -> Path:
    """The question file in its usual place.

    Raises:
        UserError: there is none, or more than one.
    """
    root = find_root(data_folder, dataset, multi_concept)
    patterns = USUAL_PLACES.get((dataset, text_only), ())
    if not patterns:
        raise UserError(f"{dataset} has no published questions: name yours with --json_path, or give --task captioning")
    for pattern in patterns:
        folder = _plain(root).parent if pattern.startswith("../") else root
        files = folder.glob(pattern.removeprefix("../"))
        found = sorted(file for file in files if not fnmatch(file.name, DESCRIPTIONS))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file) for file in found)
            raise UserError(f"several question files are there ({names}): name one with --json_path")
    places = ", ".join(patterns)
    raise UserError(f"no question file is in a usual place in {root} ({places}): name it with --json_path")


def _plain(folder: Path) -> Path:
    """An absolute path without ``..``, which would hide what lies in what; links keep their own names otherwise."""
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def known_concepts(views: Path, dataset: str, multi_concept: bool) -> tuple[Concept, ...]:
    """The concepts known by name: those with stored views; the published ones where no views are stored.

    Args:
        views: folder that holds one folder of views per concept.
        dataset: whose concepts.
        multi_concept: of its multi-concept part.

    Raises:
        UserError: the data set has no such part.
    """
    check_part(dataset, multi_concept)
    folders = concept_folders(views) if views.is_dir() else []
    names = [folder.name for folder in folders if any(folder.glob("*.pt"))]
    names = names or _published_folders(dataset, multi_concept)
    return tuple(concept_of_folder(dataset, name) for name in names)


def nameable_concepts(
    stored: Sequence[Concept], data_folder: Path, dataset: str, multi_concept: bool
) -> tuple[Concept, ...]:
    """All concepts that a question may mean, with views or without.

    Those with views first, then those with a folder of reference photos, then the published ones.

    Args:
        stored: from ``known_concepts``.
        data_folder: where the reference photos may lie.
        dataset: whose concepts.
        multi_concept: of its multi-concept part.
    """
    try:
        references = split_folder(find_root(data_folder, dataset, multi_concept), dataset, "train")
        folders = [folder.name for folder in concept_folders(references)]
    except UserError:
        folders = []  # questions and photos may lie elsewhere
    present = {folded(concept.key): concept for concept in stored}
    for folder in folders:
        present.setdefault(folded(folder), concept_of_folder(dataset, folder))
    # A published concept that is not here must not make a name of one that is mean two.
    own = {folded(name) for c in present.values() for name in (c.key, c.name, without_category(c.key))}
    for listed in published(dataset, multi_concept):
        short = without_category(listed)
        if not own & {folded(listed), folded(short)}:
            folder = short if dataset == "yollava" else listed
            present[folded(folder)] = concept_of_folder(dataset, folder)
    return tuple(present.values())


def _published_folders(dataset: str, multi_concept: bool) -> list[str]:
    names = published(dataset, multi_concept)
    return [without_category(name) for name in names] if dataset == "yollava" else list(names)


def photo_folders(file: Path, data_folder: Path, dataset: str, multi_concept: bool, split: str) -> tuple[Path, ...]:
    """The folders that photo paths are tried against, in order, and that they may not leave.

    The question file's own folder and its parents up to the data set's, the data set's folder in ``data_folder`` and
    that of the split, and ``data_folder``.
    """
    top = {name.split("/")[0].lower() for name in ROOTS[dataset] if name != "."}
    data = _plain(data_folder)
    chain = [_plain(file).parent]
    for parent in chain[0].parents:
        if chain[-1].name.lower() in top or chain[-1] == data:
            break
        chain.append(parent)
    else:  # the file lies in no data set: only beside it are photos looked for
        chain = chain[:1]
    try:
        root = find_root(data, dataset, multi_concept)
        chain += [root, split_folder(root, dataset, split)]
    except UserError:
        pass  # photos and their file may lie elsewhere, without the folders of references
    return tuple(dict.fromkeys([*chain, data]))


def find_photo(name: str, folders: Iterable[Path], dataset: str) -> Path | None:
    """Find the photo that a question file names.

    The first part of a path may be the name of the data set's folder, as it was called where the file was written.

    Args:
        name: the path as the file writes it.
        folders: from ``photo_folders``.
        dataset: whose names of its folder to expect.

    Returns:
        The photo, or None where it is in none of the folders.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    whole = Path(os.path.normpath(name))
    if whole.is_absolute() and os.path.isfile(whole) and any(_lies_in(whole, folder) for folder in folders):
        return whole
    own = {root.split("/")[0].lower() for root in ROOTS[dataset]}
    for folder in folders:
        named = own | {folder.name.lower()}
        for relative in (parts, parts[1:] if parts and parts[0].lower() in named else []):
            # an accented letter is one sign or two, as the system that made the file or the folder writes it
            for form in (None, "NFC", "NFD") if relative else ():
                spelled = [unicodedata.normalize(form, part) for part in relative] if form else relative
                path = Path(os.path.normpath(folder.joinpath(*spelled)))
                if path.is_relative_to(folder) and os.path.isfile(path):  # False, too, for a name that is too long
                    return path
    return None


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether an absolute path leads into a folder, by its names or where its links lead."""
    return path.is_relative_to(folder) or path.resolve().is_relative_to(folder.resolve())


# --- content ------------------------------------------------------------------------------------------------------


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


def find_descriptions(file: Path) -> Path | None:
    """The file beside a question file whose name speaks of descriptions; None where there is none.

    Raises:
        UserError: there are several.
    """
    found = sorted(file.parent.glob(DESCRIPTIONS))
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UserError(f"several files of descriptions are there ({names}): name one with --descriptions")
    return found[0] if found else None


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

    The key of a question with options is one of their letters; a key that gives an option's text means its letter.
    """
    question = _text(entry.get("question"))
    answer = _text(next((entry[name] for name in ("correct_answer", "answer") if entry.get(name) is not None), None))
    if not question:
        raise UserError(f"{where} has no question that is a text: mend the file")
    if answer is None:
        raise UserError(f"{where} has no correct_answer (or answer) that is a text: mend the file")
    options = _options(entry.get("options") or entry.get("option") or {}, where)
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
