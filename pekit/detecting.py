"""A run of detection: photos to records, and what there was of an earlier one to go on with.

A run keeps a folder of its own. Records are appended as they come (one file per process), so that the same command
goes on where an interrupted run stopped; the final files are written at the end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from pekit import results
from pekit.datasets import Unit
from pekit.detection_results import DetectionSettings, write_results
from pekit.files import fitting, naming
from pekit.gallery import check_views, identity, load_gallery, without_references
from pekit.hub import identify, pick_device, versions
from pekit.parallel import Shard, agree, first, gather
from pekit.photos import open_image
from pekit.pipeline import Matches, Recognizer, match_photos
from pekit.prompting import draw_boxes
from pekit.records import Concept, Detection, Gallery, LoadingSettings, ModelSettings, Photo, UserError
from pekit.retrieval import detect
from pekit.views import check_stored, stored_views

log = logging.getLogger(__name__)

KEPT_SIMILARITIES = 1000


@dataclass(frozen=True)
class DetectionReport:
    """What came of it: the run's folder, a printable table per threshold, photos left out with the reason."""

    folder: Path
    tables: list[str]
    photos: int
    failed: dict[str, str]


def run_detection(
    concepts: Sequence[Concept],
    units: Sequence[Unit],
    photos: Sequence[Photo],
    settings: DetectionSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    shard: Shard,
) -> DetectionReport:
    """Recognize the concepts in the photos and write the results.

    Raises:
        UserError: views are missing or were made by other models, or nothing is left to test on.
    """
    first(lambda: check_stored(settings.views_folder), shard)
    if settings.limit:
        concepts, units = _with_views(concepts, units, settings.views_folder)
    where = settings.views_folder, concepts, settings.variation, settings.n_training_views, settings.seed
    gallery = first(lambda: load_gallery(*where), shard)
    segment = settings.proposals == "masks"
    sources = identify(models, ground=not segment, segment=segment)
    check_views(settings.views_folder, sources, models, loading, "" if settings.photos else settings.split)
    if settings.dataset == "myvlm" and not settings.photos:
        photos = without_references(photos, gallery)
    photos = photos[: settings.limit]
    config = _config(settings, models, loading, sources, gallery, photos)
    agree(config["views_digest"], "the views", shard)
    if models.device != "auto":
        pick_device(models.device)  # before a folder is made for nothing
    lock = None
    folder, parts = settings.save_folder, 0
    done: dict[str, dict] = {}
    if shard.rank == 0:
        folder, lock = _run_folder(settings, config)
        stored = sorted(folder.glob("part-*.jsonl"))
        parts = len(stored)
        for record in (record for part in stored for record in results.read_jsonl(part) if not record["error"]):
            done[record["photo"]] = _outcome(record)
    # All go by what the first has found, before anyone adds to it, so that what is left is shared evenly.
    folder, parts, finished = gather((folder, parts, set(done)), shard)[0]
    todo = shard.share([photo for photo in photos if photo.name not in finished])
    if todo:
        recognizer = Recognizer(models, ground=not segment, segment=segment)
        # one file per process and start: a file cut short by an interruption is never appended to
        part = folder / f"part-{parts:04d}-{shard.rank}.jsonl"
        matched = match_photos(recognizer, todo, gallery, loading, settings.min_mask_area)
        with part.open("w", encoding="utf-8") as file:
            for matches in tqdm(matched, total=len(todo), desc="detecting", unit="photo"):
                record = _record(matches, gallery, settings, models.size)
                if settings.show and matches.error is None:  # before the record: what has one is not looked at again
                    _show(matches.photo, record["detections"][str(settings.thresholds[0])], folder, loading.exif)
                if not part.exists():
                    raise UserError(f"{folder} was removed while the run went on: run the same command again")
                done[record["photo"]] = _outcome(record)
                with naming(part):
                    file.write(results.json_line(record))
                    file.flush()
    for others in gather(done, shard):
        done |= others
    failed = {photo.name: done[photo.name]["error"] for photo in photos if done[photo.name]["error"]}
    if shard.rank == 0 and photos and not any(done[photo.name]["matched"] for photo in photos):
        log.warning("no photo has a region that could be compared with the views: nothing was proposed in any")
    tables = write_results(done, failed, photos, units, settings, folder) if shard.rank == 0 else []
    if lock:
        lock.close()
    return DetectionReport(folder, tables, len(photos), failed)


def _with_views(
    concepts: Sequence[Concept], units: Sequence[Unit], folder: Path
) -> tuple[Sequence[Concept], Sequence[Unit]]:
    """Those that have views, as extraction.py --limit leaves others without; all of them where none has any."""
    kept = [concept for concept in concepts if stored_views(folder, concept.key)]
    if not kept or len(kept) == len(concepts):
        return concepts, units
    log.warning("--limit: %d of %d concepts have no views and are left out", len(concepts) - len(kept), len(concepts))
    keys = {concept.key for concept in kept}
    units = [unit for unit in units if keys.issuperset(unit.concepts)]
    if not units:
        raise UserError(f"{folder} has no views of all concepts of any test folder: run extraction.py without --limit")
    return kept, units


def _config(
    settings: DetectionSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    sources: dict[str, dict],
    gallery: Gallery,
    photos: Sequence[Photo],
) -> dict:
    return results.plain(
        {
            "settings": asdict(settings),
            "model_settings": asdict(models),
            "loading": asdict(loading),
            "models": sources,
            "versions": versions(),
            "seed": settings.seed,
            "concepts": list(gallery.keys),
            **identity(gallery),
            "photos": len(photos),
            "photos_digest": _digest(photos),
        }
    )


def _digest(photos: Sequence[Photo]) -> str:
    """Changes when a photo is added, removed or replaced."""
    digest = hashlib.sha256()
    for photo in photos:
        try:
            state = photo.path.stat()
        except OSError:
            state = photo.path.lstat()  # a link that leads nowhere
        digest.update(f"{photo.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _run_folder(settings: DetectionSettings, config: dict) -> tuple[Path, IO | None]:
    """The folder of an interrupted run of the same configuration, or a new one; and the lock that holds it."""

    def decisive(config: dict) -> dict:  # device, workers and batches may change between the two
        models = {k: v for k, v in config["model_settings"].items() if k not in ("device", "compile", "offline")}
        return {
            **{k: v for k, v in config.items() if k != "loading"},
            "model_settings": models,
            "exif": config["loading"]["exif"],
        }

    runs = settings.save_folder / "runs"
    for file in sorted(runs.glob(f"*-{settings.name}/config.json")) if runs.is_dir() else ():
        interrupted = not (file.parent / "summary.json").exists()
        try:
            same = interrupted and decisive(json.loads(file.read_text(encoding="utf-8"))) == decisive(config)
            lock = results.claim(file.parent) if same else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # damaged, or another's
            log.warning("%s: not going on with that run (%s)", file, error)
            continue
        if lock:
            log.info("going on with the run in %s", file.parent)
            return file.parent, lock
    folder = results.new_run_folder(runs, f"-{settings.name}")
    lock = results.claim(folder)
    results.write_config(folder, config)
    return folder, lock


def _record(matches: Matches, gallery: Gallery, settings: DetectionSettings, size: int) -> dict:
    """What a run keeps of one photo: detections at each threshold, similarities with the nearest concepts."""
    # Of a large gallery the nearest concepts only: a number for each of 100,000 would be megabytes a photo.
    nearest = range(len(gallery.keys))
    if len(nearest) > KEPT_SIMILARITIES:
        nearest = np.argsort(-matches.best.nearest, kind="stable")[:KEPT_SIMILARITIES].tolist()
    found = {
        str(t): detect(matches.best, matches.boxes_xyxy, gallery.keys, t, size, settings.box_overlap_thresh)
        for t in settings.thresholds
    }
    return {
        "photo": matches.photo.name,
        "labels": matches.photo.concepts,
        "detections": {t: [detection.as_json() for detection in own] for t, own in found.items()},
        "similarities": {gallery.keys[c]: matches.best.nearest[c] for c in nearest},
        "error": matches.error,
    }


def _outcome(record: dict) -> dict:
    """What the end of a run needs of each photo at hand: the concepts found at each threshold, and the error.

    The record itself stays in its file: with its similarities, those of many photos would fill the memory.
    """
    found = {t: [detection["concept"] for detection in own] for t, own in record["detections"].items()}
    # in a record that was read from a file, those that are no numbers are None
    matched = any(s is not None and math.isfinite(s) for s in record["similarities"].values())
    return {"found": found, "matched": matched, "error": record["error"]}


def _show(photo: Photo, detections: Iterable[dict], folder: Path, exif: bool) -> None:
    name = Path(photo.name)  # in folders as in the data, so that no two photos share a file
    path = folder / "overlays" / name.parent / f"{fitting(name.name)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [*map(Detection.from_json, detections)]
    labels = [f"{detection.concept} {detection.score:.2f}" for detection in found]
    draw_boxes(open_image(photo.path, exif), found, labels).save(path)
