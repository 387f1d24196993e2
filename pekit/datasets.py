"""The benchmarks as they lie on disk: folders, splits, order, which photo shows what.

Everything here reads what is there: concepts are the folders found, put in the published order where they are the
published ones, so a person's own photos in one of the three layouts work as well as the benchmark itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pekit.names import concept_of_folder, folded, in_published_order, natural_key, resolve_name, without_category
from pekit.records import Concept, Photo, UserError, counted

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif"]
)
NOT_CONCEPTS = frozenset({"docs", "negative_example", "__macosx"})

# Folder names under which people keep each data set, the published one first; compared without case.
ROOTS = {
    "myvlm": ("myvlm/data", "myvlm", "data", "."),
    "yollava": ("YoLLaVA", "yollava-data", "yollava", "."),
    "this-is-my": ("This-is-My-Img", "this-is-my", "."),
}
SPLITS = {
    "train": ("train", "Reference Images"),
    "test": ("test", "Validation"),
    "validation": ("validation", "val"),
}
POSITIVE = "Positive"  # parts of This-is-My-Img's test photos
NEGATIVE_SPLITS = ("Fake", "Negative (Hard)", "Negative (Other)")
DOUBLES = (("Reynards keyboard", "Reynards work chair"), ("Nikkis car", "Nikkis camper bag"))


def _child(folder: Path, relative: str) -> Path | None:
    """Find a folder by a relative name, whatever its case."""
    for part in relative.split("/"):
        if part == ".":
            continue
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        match = part if part in names else next((name for name in names if name.lower() == part.lower()), None)
        if match is None:
            return None
        folder = folder / match
    return folder


def _first_child(folder: Path, names: Sequence[str]) -> Path | None:
    return next((found for name in names if (found := _child(folder, name))), None)


def concept_folders(folder: Path) -> list[Path]:
    """The folders inside a folder that can be concepts, in natural order; known others are left out with a note."""
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name)):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        _check_name(entry)
        if entry.name.lower() in NOT_CONCEPTS:
            log.info("left out %s: not a concept", entry)
        else:
            found.append(entry)
    return found


def check_part(dataset: str, multi_concept: bool) -> None:
    """Only this-is-my has a multi-concept part.

    Raises:
        UserError: that of another data set is asked for.
    """
    if multi_concept and dataset != "this-is-my":
        raise UserError(f"--multi_concept goes with --dataset this-is-my; {dataset} has no multi-concept part")


def find_root(data_folder: Path, dataset: str, multi_concept: bool = False) -> Path:
    """The folder of a data set: for this-is-my ``…/Single-concept`` or ``…/Multi-concept``, else the data set's own.

    Raises:
        UserError: no folder of that layout is in ``data_folder``.
    """
    if not data_folder.is_dir():
        raise UserError(f"--data_folder {data_folder} is not a folder: name the one that holds {ROOTS[dataset][0]}")
    check_part(dataset, multi_concept)
    for name in ROOTS[dataset]:
        root = _child(data_folder, name)
        if root is None:
            continue
        if dataset == "this-is-my":
            root = _child(root, "Multi-concept" if multi_concept else "Single-concept") or (
                root if name != "." and not multi_concept and _first_child(root, SPLITS["train"]) else None
            )
        elif dataset == "yollava":
            root = root if _first_child(root, SPLITS["train"] + SPLITS["test"]) else None
        elif name in ("data", "."):  # only where concept folders with photos lie directly inside
            root = root if any(list_photos(folder) for folder in concept_folders(root)) else None
        if root is not None:
            return root
    part = {"this-is-my": "/Multi-concept" if multi_concept else "/Single-concept"}.get(dataset, "")
    raise UserError(
        f"--data_folder {data_folder} has no {ROOTS[dataset][0]}{part} in it: put the {dataset} data set there or name "
        "the folder that holds it"
    )


def split_folder(root: Path, dataset: str, split: str) -> Path:
    """The folder of a split; myvlm has none, so its root serves every split.

    Raises:
        UserError: the split is not on disk.
    """
    if dataset == "myvlm":
        return root
    found = _first_child(root, SPLITS[split])
    if found is None and split == "train":
        place = root / SPLITS[split][0]
        raise UserError(
            f"{place} is not there, whose folders are the concepts: put reference photos into {place}/CONCEPT/, or "
            "check --data_folder"
        )
    if found is None:
        raise UserError(f"--split {split}: {root} has no folder {SPLITS[split][0]}; check --split and --data_folder")
    return found


def list_photos(folder: Path) -> list[Path]:
    """The photos in a folder in natural order of their names, typed by content.

    A file with an image's suffix counts even where it cannot be read (reading it will say so); another file counts
    when its content is an image. Hidden files do not count; links that lead nowhere do.
    """
    entries = (entry for entry in folder.iterdir() if entry.is_file() or not entry.exists())
    files = sorted(entries, key=lambda entry: natural_key(entry.name))
    photos = [file for file in files if not file.name.startswith(".") and _is_photo(file)]
    for photo in photos:
        _check_name(photo)
    return photos


def _check_name(path: Path) -> None:
    """Records name photos and concepts in UTF-8.

    Raises:
        UserError: this name is of another encoding.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = path.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise UserError(f"{path.parent / shown}: its name is not in UTF-8: rename it") from None


def _is_photo(file: Path) -> bool:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with Image.open(file):
            return True
    except Exception:  # what is no image, or a damaged one, makes the decoders raise anything
        return False


def read_concepts(
    data_folder: Path, dataset: str, multi_concept: bool = False, split: str = "train"
) -> tuple[Concept, ...]:
    """The concepts of a data set: the folders of a split, in the published order where they are published ones.

    Raises:
        UserError: the data set or split is not there, or holds no folder.
    """
    folder = split_folder(find_root(data_folder, dataset, multi_concept), dataset, split)
    names = [entry.name for entry in concept_folders(folder) if dataset != "myvlm" or list_photos(entry)]
    if not names:
        raise UserError(f"{folder} holds no concept folders: each concept is a folder of photos")
    return tuple(concept_of_folder(dataset, name) for name in in_published_order(names, dataset, multi_concept))


def _photo(path: Path, data_folder: Path, concepts: tuple[str, ...]) -> Photo:
    return Photo(path, path.relative_to(data_folder).as_posix(), concepts)


def reference_photos(
    data_folder: Path, dataset: str, multi_concept: bool, split: str, concepts: Sequence[Concept], n_training_views: int
) -> list[Photo]:
    """The first ``n_training_views`` photos of each concept, in natural order of file names."""
    folder = split_folder(find_root(data_folder, dataset, multi_concept), dataset, split)
    photos: list[Photo] = []
    few: dict[str, int] = {}
    _warn_of_stray(folder, (folder / concept.key for concept in concepts))
    for concept in concepts:
        own = list_photos(folder / concept.key)
        if not own:
            raise UserError(f"{folder / concept.key} holds no photo: add reference photos or remove the folder")
        if len(own) < n_training_views:
            few[concept.key] = len(own)
        photos += [_photo(path, data_folder, (concept.key,)) for path in own[:n_training_views]]
    if few:
        each = ", ".join(f"{key} has {counted(count, 'photo')}" for key, count in few.items())
        log.warning("%s: fewer than the %d views asked for", each, n_training_views)
    return photos


@dataclass(frozen=True)
class Unit:
    """What per-unit metrics are counted over: one concept, or a test folder ``A_and_B`` with all its concepts."""

    name: str
    concepts: tuple[str, ...]


def positive_part(dataset: str, multi_concept: bool, split: str) -> str | None:
    """The part of a split whose photos show the concepts of their folders; None where the split has no parts."""
    return POSITIVE if dataset == "this-is-my" and not multi_concept and split != "train" else None


def query_photos(
    data_folder: Path,
    dataset: str,
    multi_concept: bool,
    split: str,
    test_split: str | None,
    concepts: Sequence[Concept],
) -> tuple[list[Unit], list[Photo]]:
    """The photos to recognize concepts in, and the units that metrics are counted over.

    Photos of a concept without views cannot be judged as positives; they stay as negatives of the others.

    Raises:
        UserError: the split or test split is not there, or no folder in it has photos of known concepts.
    """
    folder = split_folder(find_root(data_folder, dataset, multi_concept), dataset, split)
    if test_split:
        parts = folder
        folder = _child(parts, test_split) or folder
        if folder == parts:
            raise UserError(
                f"{parts} has no folder '{test_split}' (it has {_names(parts)}): add it, or check --data_folder and "
                "detection.py's --test_split"
            )
    if multi_concept and split != "train":
        return _multi_concept_photos(data_folder, folder, concepts)
    units = [Unit(concept.key, (concept.key,)) for concept in concepts]
    photos = []
    folders = concept_folders(folder)
    _warn_of_stray(folder, folders)
    for own in folders:
        meant = _concept_of_photos(own.name, dataset, concepts)
        for path in list_photos(own):
            photos.append(_photo(path, data_folder, _shown(path, meant.key if meant else own.name, concepts)))
    if not photos:
        raise UserError(f"{folder} holds no photo in concept folders; check --split and --data_folder")
    return units, photos


def unlabelled_photos(folder: Path, results: Path) -> list[Photo]:
    """All photos in a folder and in those inside it, in natural order of their names; nothing tells what they show.

    Hidden folders are left out, and any that has been visited by another name.

    Args:
        folder: where to look.
        results: folder of results, whose pictures are none of these.

    Raises:
        UserError: it is no folder, or there are none.
    """
    visited = {results.resolve()}

    def below(place: Path) -> Iterator[Path]:
        real = place.resolve()
        if real in visited:
            return
        visited.add(real)
        try:
            yield from list_photos(place)
            folders = [entry for entry in place.iterdir() if entry.is_dir()]
        except OSError as error:
            log.warning("%s is left out: %s", place, error.strerror)
            return
        for own in sorted(folders, key=lambda entry: natural_key(entry.name)):
            if not own.name.startswith(".") and own.name.lower() != "__macosx":
                yield from below(own)

    photos = [_photo(path, folder, ()) for path in below(folder)] if folder.is_dir() else []
    if not photos:
        raise UserError(f"--photos {folder} {'holds no photo' if folder.is_dir() else 'is no folder'}: check the name")
    return photos


def _concept_of_photos(folder: str, dataset: str, concepts: Sequence[Concept]) -> Concept | None:
    """The concept that a folder of test photos shows, whatever its case and the form of accented letters, which differ
    between file systems; None where it has no reference photos."""
    if dataset == "this-is-my":
        meant = resolve_name(folder, concepts)
        names = (meant.key, meant.name, without_category(meant.key)) if meant else ()
        return meant if folded(folder) in map(folded, names) else None  # `mug-fake` is not one of `mug`
    # Here a part of a name is no category: `mug` may well be another thing than `mug-green`.
    alike = [concept for concept in concepts if folded(concept.key) == folded(folder)]
    same = [concept for concept in alike if concept.key == folder] or alike
    return same[0] if len(same) == 1 else None


def warn_of_unknown(photos: Sequence[Photo], concepts: Sequence[Concept], units: Sequence[Unit]) -> None:
    """Say which of the folders of test photos have no reference photos, and which units no test photos."""
    known = {concept.key for concept in concepts}
    shown = {key for photo in photos for key in photo.concepts}
    if without := [unit.name for unit in units if not shown.issuperset(unit.concepts)]:
        log.warning("%s without test photos, such as %s: recall and means are NaN",
                    counted(len(without), "concept"), without[0])  # fmt: skip
    for folder in dict.fromkeys(photo.concepts[0] for photo in photos):
        if folder not in known:
            log.warning("%s has no reference photos; its test photos count as negatives of the others", folder)


def _shown(path: Path, key: str, concepts: Sequence[Concept]) -> tuple[str, ...]:
    """The concepts a photo shows: its folder's, and the partner's where the name ends in ``_double.png``."""
    if path.name.lower().endswith("_double.png"):
        for pair in DOUBLES:
            if without_category(key) in pair:
                partner = resolve_name(pair[1 - pair.index(without_category(key))], concepts)
                return (key, partner.key) if partner else (key,)
    return (key,)


def _multi_concept_photos(
    data_folder: Path, folder: Path, concepts: Sequence[Concept]
) -> tuple[list[Unit], list[Photo]]:
    units, photos, strange = [], [], []
    for own in concept_folders(folder):
        parts = [resolve_name(part, concepts) for part in own.name.split("_and_")]
        keys = tuple(part.key for part in parts if part)
        if len(parts) < 2 or len(keys) < len(parts):
            strange.append(own)
            continue
        units.append(Unit(own.name, keys))
        photos += [_photo(path, data_folder, keys) for path in list_photos(own)]
    told = f"does not read as A_and_B of the concepts in train ({', '.join(concept.key for concept in concepts)})"
    if strange and not units:
        raise UserError(f"{strange[0]}: its name {told}: rename it")
    for own in strange:
        log.warning("left out %s: its name %s", own, told)
    if not photos:
        raise UserError(f"{folder} holds no photo in folders named A_and_B; check --data_folder")
    return units, photos


def _names(folder: Path) -> str:
    return ", ".join(f"'{entry.name}'" for entry in concept_folders(folder)) or "no folders"


def _warn_of_stray(folder: Path, of_concepts: Iterable[Path]) -> None:
    """Say where photos lie beside or below the folders that they are read from."""
    beside = [file.name for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if beside:
        log.warning("%s directly in %s, such as %s: only those in its folders are read",
                    counted(len(beside), "photo"), folder, min(beside))  # fmt: skip
    for own in of_concepts:
        for below in own.iterdir():
            hidden = below.name.startswith(".") or below.name.lower() in NOT_CONCEPTS
            if below.is_dir() and not hidden and list_photos(below):
                log.warning("%s: photos in folders inside a concept's folder are not read", below)
