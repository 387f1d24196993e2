"""A run of extraction: which views are to be made, what keeps them from being mixed with others, what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pekit.cli import LoadingSettings, ModelSettings
from pekit.files import digest_of
from pekit.gallery import stored_views
from pekit.hub import identify, versions
from pekit.parallel import Shard, gather
from pekit.pictures import Task
from pekit.pipeline import Recognizer, extract_views
from pekit.records import Concept, Photo, UserError
from pekit.views import Manifest, load_view, read_manifest, view_file

log = logging.getLogger(__name__)


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
    """

    folder: Path
    split: str
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
    """Make the views that are not there yet, and anew those of photos that have changed.

    Raises:
        UserError: two photos would share a view file, or the folder holds views of other models or settings.
    """
    _refuse_shared_files(photos, settings)
    manifest = _manifest(identify(models, ground=True, segment=settings.grounding_sam), settings, models, loading)

    def place(task: Task) -> Path:
        return view_file(settings.folder, task.photo.concepts[0], task.photo.path.stem, task.augmentation)

    tasks = [Task(photo, number) for photo in photos for number in range(settings.n_augment + 1)]
    missing: list[int] = []
    outdated: set[Path] = set()
    if shard.rank == 0:
        outdated = _outdated(manifest, photos, settings, place)
        missing = [i for i, task in enumerate(tasks) if place(task) in outdated or not place(task).is_file()]
    # All go by what the first has found, before anyone adds to it, so that what is left is shared evenly.
    left = [tasks[i] for i in gather(missing, shard)[0]]
    mine = set(shard.share(list(dict.fromkeys(task.photo for task in left))))
    todo = [task for task in left if task.photo in mine]
    if settings.shuffle:
        todo = [todo[i] for i in np.random.default_rng(settings.seed).permutation(len(todo))]
    failed: dict[str, str] = {}
    recognizer = Recognizer(models, ground=True, segment=settings.grounding_sam) if todo else None
    for path in outdated:  # only now, when what could be wrong with models and options has been found
        path.unlink(missing_ok=True)
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
        n_augment=settings.n_augment,
        split=settings.split,
        dtype=models.dtype,
        exif=loading.exif,
        versions=versions(),
    )


def _outdated(
    manifest: Manifest, photos: Sequence[Photo], settings: ExtractionSettings, place: Callable[[Task], Path]
) -> set[Path]:
    """The stored views that must make room: of photos that have changed, or all where views are to be overwritten.

    Raises:
        UserError: what is stored was made differently and is not to be overwritten.
    """
    folder = settings.folder
    if difference := _difference(manifest, folder):
        if not settings.overwrite:
            raise UserError(
                f"{folder} holds views of {difference}: give another --features_folder, or --overwrite to replace them"
            )
        log.info("removing the views of %s from %s", difference, folder)
        return set(folder.glob("*/*.pt"))
    sources = {photo.concepts[0]: photo.path.parent for photo in photos}
    stored = {concept: stored_views(folder, concept) for concept in sources}
    there = {concept: {file.stem for file in source.iterdir()} for concept, source in sources.items()}
    gone = [(concept, *view) for concept, own in stored.items() for view in own if view[0] not in there[concept]]
    if settings.overwrite:
        anew = {(photo.concepts[0], photo.path.stem) for photo in photos}
    else:
        if gone:
            log.warning(
                "%d views are of photos that are no longer there, and stay in use, such as %s: remove them, or give "
                "--overwrite",
                len(gone),
                view_file(folder, *gone[0]),
            )
            gone = []
        with ThreadPoolExecutor() as readers:
            flags = readers.map(lambda photo: _has_changed(photo, settings.n_augment, place), photos)
            changed = [photo for photo, flag in zip(photos, flags, strict=True) if flag]
        if changed:
            log.warning(
                "%d photos have changed since their views were made, such as %s: making their views anew",
                len(changed),
                changed[0].name,
            )
        anew = {(photo.concepts[0], photo.path.stem) for photo in changed}
    again = [(concept, *view) for concept, own in stored.items() for view in own if (concept, view[0]) in anew]
    return {view_file(folder, *view) for view in gone + again}


def _difference(manifest: Manifest, folder: Path) -> str | None:
    """What keeps the views of a folder from being mixed with others; None where nothing does, or there are none."""
    if not any(folder.glob("*/*.pt")):
        return None
    stored = read_manifest(folder)
    return stored.difference(manifest) if stored else "models and settings that no manifest.json tells"


def _has_changed(photo: Photo, n_augment: int, place: Callable[[Task], Path]) -> bool:
    """Whether a photo is not the one that its stored view was made from, or that view cannot be read."""
    places = (place(Task(photo, number)) for number in range(n_augment + 1))
    view = next((path for path in places if path.is_file()), None)
    if view is None:
        return False
    try:
        return load_view(view).photo_digest != digest_of(photo.path)
    except UserError:
        return True
    except OSError:
        return False  # the photo cannot be read, so no other view can be made


def _save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it; where augmented views are there already, their seed and number stay the folder's."""
    stored = read_manifest(folder)
    if stored and stored.n_augment > manifest.n_augment and not stored.difference(manifest):
        manifest = replace(manifest, n_augment=stored.n_augment, seed=stored.seed)
    manifest.save(folder)


def _refuse_shared_files(photos: Sequence[Photo], settings: ExtractionSettings) -> None:
    seen: dict[Path, Photo] = {}
    for photo in photos:
        file = view_file(settings.folder, photo.concepts[0], photo.path.stem, 0)
        if other := seen.get(file):
            raise UserError(f"{other.path} and {photo.path.name} would share the view {file.name}: rename one of them")
        seen[file] = photo
