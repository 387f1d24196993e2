"""A run of extraction: which views are to be made, what keeps them from being mixed with others, what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pekit.cli import LoadingSettings, ModelSettings
from pekit.hub import identify, versions
from pekit.parallel import Shard, gather
from pekit.pictures import Task
from pekit.pipeline import Recognizer, extract_views
from pekit.records import Concept, Photo, UserError
from pekit.views import Manifest, read_manifest, view_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionSettings:
    """What to extract.

    Attributes:
        folder: folder of the views.
        n_augment: augmentations per photo; 0 for the photos alone.
        grounding_sam: masks by SAM in place of filled boxes.
        min_mask_area: SAM masks of fewer pixels are left empty, px.
        seed: of the augmentations and of ``shuffle``.
        shuffle: extract in a random order; the views are the same.
        overwrite: make views again that are there.
    """

    folder: Path
    n_augment: int
    grounding_sam: bool
    min_mask_area: int
    seed: int
    shuffle: bool
    overwrite: bool


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
    """Make the views that are not there yet.

    Raises:
        UserError: two photos would share a view file, or the folder holds views of other models or settings.
    """
    _refuse_shared_files(photos, settings)
    manifest = _manifest(identify(models, ground=True, segment=settings.grounding_sam), settings, models, loading)

    def place(task: Task) -> Path:
        return view_file(settings.folder, task.photo.concepts[0], task.photo.path.stem, task.augmentation)

    tasks = [Task(photo, number) for photo in photos for number in range(settings.n_augment + 1)]
    missing: list[int] = []
    if shard.rank == 0:
        _refuse_mixing(manifest, settings)
        missing = [i for i, task in enumerate(tasks) if settings.overwrite or not place(task).is_file()]
        if not settings.overwrite:
            _warn_of_replaced(photos, lambda photo: place(Task(photo, 0)))
    # All go by what the first has found, before anyone adds to it, so that what is left is shared evenly.
    left = [tasks[i] for i in gather(missing, shard)[0]]
    mine = set(shard.share(list(dict.fromkeys(task.photo for task in left))))
    todo = [task for task in left if task.photo in mine]
    if settings.shuffle:
        todo = [todo[i] for i in np.random.default_rng(settings.seed).permutation(len(todo))]
    failed: dict[str, str] = {}
    recognizer = Recognizer(models, ground=True, segment=settings.grounding_sam) if todo else None
    if settings.overwrite:
        if shard.rank == 0:  # only now, when what could be wrong with models and options has been found
            _make_room(manifest, settings, [place(task) for task in left])
        gather(None, shard)
    if recognizer:
        if shard.rank == 0:
            _save_manifest(_manifest(recognizer.sources(), settings, models, loading), settings.folder)
        prompts = {concept.key: concept.prompt for concept in concepts}
        failed = extract_views(
            recognizer,
            todo,
            prompts,
            loading,
            place,
            settings.seed,
            settings.min_mask_area if settings.grounding_sam else 0,
        )
    lost = sum(task.photo.name in failed for task in todo)
    everything: dict[str, str] = {}
    made = 0
    for count, reasons in gather((len(todo) - lost, failed), shard):
        made += count
        everything |= reasons
    return ExtractionReport(made, len(tasks) - len(left), everything)


def _manifest(
    sources: dict[str, dict], settings: ExtractionSettings, models: ModelSettings, loading: LoadingSettings
) -> Manifest:
    return Manifest(
        models=sources,
        mask_kind="sam" if settings.grounding_sam else "box",
        size=models.size,
        min_mask_area=settings.min_mask_area if settings.grounding_sam else 0,
        seed=settings.seed,
        augmented=settings.n_augment > 0,
        dtype=models.dtype,
        exif=loading.exif,
        versions=versions(),
    )


def _difference(manifest: Manifest, folder: Path) -> str | None:
    """What keeps the views of a folder from being mixed with others; None where nothing does, or there are none."""
    stored = read_manifest(folder)
    return stored.difference(manifest) if stored and any(folder.glob("*/*.pt")) else None


def _refuse_mixing(manifest: Manifest, settings: ExtractionSettings) -> None:
    """Refuse to add to views made differently, unless they are to be replaced."""
    if not settings.overwrite and (difference := _difference(manifest, settings.folder)):
        raise UserError(
            f"{settings.folder} holds views of {difference}: give another --features_folder, "
            "or --overwrite to replace them"
        )


def _make_room(manifest: Manifest, settings: ExtractionSettings, views: Sequence[Path]) -> None:
    """Remove the views that are to be made anew, and all views that were made differently."""
    if difference := _difference(manifest, settings.folder):
        log.info("removing the views of %s from %s", difference, settings.folder)
    for path in settings.folder.glob("*/*.pt") if difference else views:
        path.unlink(missing_ok=True)


def _save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it; where augmented views are there already, their seed stays the folder's seed."""
    stored = read_manifest(folder)
    if stored and stored.augmented and not manifest.augmented and not stored.difference(manifest):
        manifest = replace(manifest, augmented=True, seed=stored.seed)
    manifest.save(folder)


def _warn_of_replaced(photos: Sequence[Photo], place: Callable[[Photo], Path]) -> None:
    """Name photos that have changed since their views were made."""
    views = ((photo, place(photo)) for photo in photos if photo.path.exists())
    changed = [p.name for p, view in views if view.is_file() and view.stat().st_mtime < p.path.stat().st_mtime]
    if changed:
        log.warning(
            "%d photos are newer than their views, such as %s: --overwrite makes the views anew",
            len(changed),
            changed[0],
        )


def _refuse_shared_files(photos: Sequence[Photo], settings: ExtractionSettings) -> None:
    seen: dict[Path, Photo] = {}
    for photo in photos:
        file = view_file(settings.folder, photo.concepts[0], photo.path.stem, 0)
        if other := seen.get(file):
            raise UserError(f"{other.path} and {photo.path.name} would share the view {file.name}: rename one of them")
        seen[file] = photo
