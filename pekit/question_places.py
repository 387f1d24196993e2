"""Where question files, descriptions and photos lie, and which concepts a question may mean."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from pekit.datasets import ROOTS, check_part, concept_folders, find_root, split_folder
from pekit.names import concept_of_folder, folded, published, published_folders, without_category
from pekit.records import Concept, UserError

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
DESCRIPTIONS = "*descriptions*.json"


# --- files --------------------------------------------------------------------------------------------------------


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


# --- concepts -----------------------------------------------------------------------------------------------------


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
    return tuple(concept_of_folder(dataset, name) for name in names or published_folders(dataset, multi_concept))


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
    listed = zip(published(dataset, multi_concept), published_folders(dataset, multi_concept), strict=True)
    for name, folder in listed:
        if not own & {folded(name), folded(without_category(name))}:
            present[folded(folder)] = concept_of_folder(dataset, folder)
    return tuple(present.values())
