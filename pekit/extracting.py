"""A run of extraction: which views are to be made, what keeps them from being mixed with others, what came of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pekit.files import alone_in, digest_if_readable
from pekit.hub import identify, versions
from pekit.names import natural_key
from pekit.parallel import Shard, first, gather
from pekit.pictures import AUGMENTATION, Task, import_albumentations
from pekit.pipeline import Recognizer, extract_views
from pekit.records import Concept, LoadingSettings, ModelSettings, Photo, UserError, counted
from pekit.views import MANIFEST, Manifest, load_view, read_manifest, split_name, stored_views, view_file

log = logging.getLogger(__name__)

CHANGED, DAMAGED = "changed", "damaged"  # what may be wrong with a stored view


@dataclass(frozen=True)
class ExtractionSettings:
    """What to extract.

    Attributes:
        folder: folder of the views.
        split: that the photos are of; "" where the data set has none.
        n_augment: augmentations per photo; 0 for the photos alone.
        grounding_sam: masks by SAM in place of filled boxes.
        min_mask_area: SAM masks of fewer pixels are left empty, px.
        seed: of the augmentations and of ``shuffle``.
        shuffle: extract in a random order; the views are the same.
        overwrite: make views again that are there.
        limit: how many photos the run was cut to; None for all of them.
    """

    folder: Path
    split: str
    n_augment: int
    grounding_sam: bool
    min_mask_area: int
    seed: int
    shuffle: bool
    overwrite: bool
    limit: int | None = None


@dataclass(frozen=True)
class ExtractionReport:
    """What came of it: views made, views that were there, and the photos left out with the reason."""

    made: int
    kept: int
    failed: dict[str, str]


def run_extraction(
    concepts: Sequence[Concept],
    photos: Sequence[Photo],
    settings: ExtractionSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    shard: Shard,
) -> ExtractionReport:
    """Make the views that are not there yet, and anew those of photos that have changed.

    Raises:
        UserError: two photos would share a view file, or the folder holds views of other models or settings.
    """
    _refuse_shared_files(photos, settings)
    manifest = _manifest(settings, models, loading)

    def place(task: Task) -> Path:
        return view_file(settings.folder, task.photo.concepts[0], task.photo.path.stem, task.augmentation)

    tasks = [Task(photo, number) for photo in photos for number in range(settings.n_augment + 1)]
    missing: list[int] = []
    stored = first(lambda: Stored() if shard.rank else _look_through(manifest, photos, settings), shard)
    if shard.rank == 0:
        anew = stored.removed | stored.outdated | (set(map(place, tasks)) if settings.overwrite else set())
        missing = [i for i, task in enumerate(tasks) if place(task) in anew or not place(task).is_file()]
    # All go by what the first has found, before anyone adds to it, so that what is left is shared evenly.
    left = [tasks[i] for i in gather(missing, shard)[0]]
    mine = set(shard.share(list(dict.fromkeys(task.photo for task in left))))
    todo = [task for task in left if task.photo in mine]
    if settings.shuffle:
        todo = [todo[i] for i in np.random.default_rng(settings.seed).permutation(len(todo))]
    if any(task.augmentation for task in todo):
        import_albumentations()
    failed: dict[str, str] = {}
    recognizer = Recognizer(models, ground=True, segment=settings.grounding_sam) if todo else None

    # Only now, when what could be wrong with models and options has been found.
    first(lambda: None if shard.rank else _make_room(stored, settings.folder, manifest if todo else None), shard)
    if not shard.rank:
        _tell_of_orphans(settings.folder, {concept.key for concept in concepts})
    if recognizer:
        prompts = {concept.key: concept.prompt for concept in concepts}
        guarded = _guarded(place, manifest, settings.folder)
        failed = extract_views(recognizer, todo, prompts, loading, guarded, settings.seed, manifest.min_mask_area)
    lost = sum(task.photo.name in failed for task in todo)
    everything: dict[str, str] = {}
    made = 0
    for count, reasons in gather((len(todo) - lost, failed), shard):
        made += count
        everything |= reasons
    _remove_leftovers(stored.leftovers, everything)
    return ExtractionReport(made, len(tasks) - len(left), everything)


def _make_room(stored: Stored, folder: Path, manifest: Manifest | None) -> None:
    """Remove what is not to stay, and write the manifest of the views that are to be made, if any are."""
    if stored.difference:
        log.info("removing the views of %s from %s", stored.difference, folder)
    for path in stored.removed:
        path.unlink(missing_ok=True)
    if manifest:
        _save_manifest(manifest, folder, stored.manifest)


def _guarded(place: Callable[[Task], Path], manifest: Manifest, folder: Path) -> Callable[[Task], Path]:
    """``place``, but that it raises an error once another run has begun to make other views in the folder."""
    seen: os.stat_result | None = None

    def guarded(task: Task) -> Path:
        nonlocal seen
        if seen is None or _has_changed(folder / MANIFEST, seen):
            seen = _save_manifest(manifest, folder, None)
        return place(task)

    return guarded


def _manifest(settings: ExtractionSettings, models: ModelSettings, loading: LoadingSettings) -> Manifest:
    return Manifest(
        models=identify(models, ground=True, segment=settings.grounding_sam),
        mask_kind="sam" if settings.grounding_sam else "box",
        size=models.size,
        min_mask_area=settings.min_mask_area if settings.grounding_sam else 0,
        seed=settings.seed,
        n_augment=settings.n_augment,
        split=settings.split,
        dtype=models.dtype,
        exif=loading.exif,
        versions=versions(),
        augmentation=AUGMENTATION,
    )


@dataclass(frozen=True)
class Stored:
    """The stored views that must make room.

    Attributes:
        manifest: of the folder; None where there is none.
        difference: how all of them were made differently, in words; None where they were not.
        removed: all, where they were made differently or their photos are gone; they go before others are made.
        outdated: of photos that have changed, or damaged; each stays until its successor is there.
        leftovers: of these the ones without a successor, with the name of the photo.
    """

    manifest: Manifest | None = None
    difference: str | None = None
    removed: set[Path] = field(default_factory=set)
    outdated: set[Path] = field(default_factory=set)
    leftovers: dict[Path, str] = field(default_factory=dict)


def _look_through(manifest: Manifest, photos: Sequence[Photo], settings: ExtractionSettings) -> Stored:
    """Find the stored views that must make room.

    Raises:
        UserError: what is stored was made differently and is not to be overwritten, or only a part would be made again.
    """
    folder = settings.folder
    stored = _stored_manifest(folder)
    if difference := _difference(manifest, stored, folder):
        if not settings.overwrite:
            raise UserError(
                f"{folder} holds views of {difference}: give another --features_folder, or --overwrite to replace them"
            )
        if settings.limit:
            raise UserError(
                f"{folder} holds views of {difference}: --overwrite would remove them all and --limit make only a few "
                "again; give another --features_folder to try something out, or leave out --limit"
            )
        return Stored(stored, difference, removed=set(folder.glob("*/*.pt")))
    sources = {photo.concepts[0]: photo.path.parent for photo in photos}
    views = {concept: stored_views(folder, concept) for concept in sources}
    there = {concept: {file.stem for file in source.iterdir()} for concept, source in sources.items()}
    gone = [(concept, *view) for concept, own in views.items() for view in own if view[0] not in there[concept]]
    if gone:
        log.warning(
            "%s of photos that are no longer there, such as %s: %s",
            counted(len(gone), "view"),
            view_file(folder, *gone[0]),
            "they will be removed" if settings.overwrite else "they stay in use; remove them, or give --overwrite",
        )
    by_stem = {(photo.concepts[0], photo.path.stem): photo for photo in photos}
    present = [(by_stem[key, view[0]], view) for key, own in views.items() for view in own if (key, view[0]) in by_stem]
    with ThreadPoolExecutor() as readers:
        known = list(dict.fromkeys(photo for photo, _ in present))
        digests = dict(zip(known, readers.map(digest_if_readable, (photo.path for photo in known)), strict=True))
        files = [view_file(folder, photo.concepts[0], *view) for photo, view in present]
        faults = readers.map(_fault, files, (digests[photo] for photo, _ in present))
        found = list(zip(files, present, faults, strict=True))
    outdated = {file: (photo, view[1]) for file, (photo, view), fault in found if fault}
    if changed := list(dict.fromkeys(photo.name for _, (photo, _), fault in found if fault == CHANGED)):
        log.warning("%s changed after the views were made, such as %s: making the views anew",
                    counted(len(changed), "photo"), changed[0])  # fmt: skip
    if damaged := [file for file, _, fault in found if fault == DAMAGED]:
        log.warning("%s could not be read, such as %s: each is made anew", counted(len(damaged), "view"), damaged[0])
    leftovers = {file: photo.name for file, (photo, number) in outdated.items() if number > settings.n_augment}
    removed = {view_file(folder, *view) for view in gone} if settings.overwrite else set()
    return Stored(stored, None, removed, set(outdated), leftovers)


def _tell_of_orphans(folder: Path, concepts: Set[str]) -> None:
    """Name concepts with views whose folder of reference photos is gone, or has another name now."""
    others = [own for own in folder.iterdir() if own.name not in concepts] if folder.is_dir() else []
    if orphans := sorted((own.name for own in others if any(own.glob("*.pt"))), key=natural_key):
        log.warning(
            "views of %s without reference photos in %s, such as %s: vqa.py still knows them; remove their folders to "
            "forget them",
            counted(len(orphans), "concept"),
            folder,
            orphans[0],
        )


def _stored_manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except UserError:
        return None


def _difference(manifest: Manifest, stored: Manifest | None, folder: Path) -> str | None:
    """What keeps the views of a folder from being mixed with others; None where nothing does, or there are none."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    if stored is None:
        return f"models and settings that no {MANIFEST} of this version tells"
    return _borne_out(stored, numbers).difference(manifest)


def _numbers(folder: Path) -> set[int]:
    """The numbers of the augmentations that are stored, over all photos."""
    return {split_name(path)[1] for path in folder.glob("*/*.pt") if not path.name.startswith(".")}


def _borne_out(stored: Manifest, numbers: set[int]) -> Manifest:
    """The manifest with ``n_augment`` no larger than what is stored: augmentations that were removed do not count."""
    return replace(stored, n_augment=min(stored.n_augment, max(numbers, default=0)))


def _fault(view: Path, digest: str) -> str | None:
    """Why a view is to be made anew: it was not made from the photo of this digest, or cannot be read.

    None where nothing is wrong, and where there is no digest: that photo cannot be read.
    """
    try:
        return CHANGED if digest and load_view(view).photo_digest != digest else None
    except UserError:
        return DAMAGED


def _remove_leftovers(leftovers: dict[Path, str], failed: dict[str, str]) -> None:
    """Remove augmented views of what photos were before, now that there are new views of them."""
    if replaced := [view for view, photo in leftovers.items() if photo not in failed]:
        log.info("removing %s: --variation augment makes such again",
                 counted(len(replaced), "outdated augmented view"))  # fmt: skip
    for view in replaced:
        view.unlink(missing_ok=True)


def _has_changed(file: Path, seen: os.stat_result) -> bool:
    try:
        return not os.path.samestat(now := file.stat(), seen) or now.st_mtime_ns != seen.st_mtime_ns
    except FileNotFoundError:
        return True


def _save_manifest(manifest: Manifest, folder: Path, seen: Manifest | None) -> os.stat_result:
    """Write the manifest; where more augmentations are stored, their number, seed and way of drawing are kept in it.

    Returns:
        The state of its file, by which ``_has_changed`` notices a manifest that is written later.

    Raises:
        UserError: since the manifest was ``seen``, another run with other models or settings has begun there.
    """
    with alone_in(folder):
        stored = there = _stored_manifest(folder)
        if stored and stored == seen:
            stored = _borne_out(stored, _numbers(folder))
        elif stored and (difference := stored.difference(manifest)):
            raise UserError(f"another run is making views of {difference}, in {folder}: give another --features_folder")
        if stored and stored.n_augment > manifest.n_augment:
            kept = {name: getattr(stored, name) for name in ("n_augment", "seed", "augmentation")}
            manifest = replace(manifest, **kept)
        if manifest != there:
            manifest.save(folder)
        return (folder / MANIFEST).stat()


def _refuse_shared_files(photos: Sequence[Photo], settings: ExtractionSettings) -> None:
    seen: dict[Path, Photo] = {}
    for photo in photos:
        file = view_file(settings.folder, photo.concepts[0], photo.path.stem, 0)
        if other := seen.get(file):
            raise UserError(f"{other.path} and {photo.path.name} would share the view {file.name}: rename one of them")
        seen[file] = photo
