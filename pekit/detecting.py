"""A run of detection: photos to records, records to metrics, tables and result files.

A run keeps a folder of its own. Records are appended as they come (one file per process), so that the same command
goes on where an interrupted run stopped; the final files are written at the end.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from pekit import metrics, results
from pekit.cli import LoadingSettings, ModelSettings
from pekit.datasets import Unit
from pekit.gallery import identity, load_gallery, photo_stems, stored_views
from pekit.hub import identify, versions
from pekit.parallel import Shard, first_then_others, gather
from pekit.pipeline import Matches, Recognizer, match_photos
from pekit.records import Concept, Detection, Gallery, Photo, UserError
from pekit.retrieval import detect
from pekit.views import read_manifest

log = logging.getLogger(__name__)

KEPT_SIMILARITIES = 1000
INVERTED_SPLITS = ("Fake", "Negative (Hard)", "Negative (Other)")


@dataclass(frozen=True)
class DetectionSettings:
    """What to detect; the fields are detection.py's options.

    Attributes:
        thresholds: one or several, all evaluated from one pass of the models.
        proposals: "boxes" or "masks".
        views_folder: folder of the stored views.
    """

    dataset: str
    multi_concept: bool
    test_split: str | None
    variation: str
    n_training_views: int
    thresholds: tuple[float, ...]
    proposals: str
    min_mask_area: int
    box_overlap_thresh: float
    seed: int
    limit: int | None
    views_folder: Path
    save_folder: Path
    show: bool

    @property
    def name(self) -> str:
        return results.setting_name(self.dataset, self.multi_concept, self.test_split)


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
    if settings.limit:
        concepts, units = _with_views(concepts, units, settings.views_folder)
    where = settings.views_folder, concepts, settings.variation, settings.n_training_views, settings.seed
    gallery = first_then_others(lambda: load_gallery(*where), shard)
    segment = settings.proposals == "masks"
    sources = identify(models, ground=not segment, segment=segment)
    check_views(settings.views_folder, sources, models, loading)
    photos = _tested(photos, gallery, settings)
    config = _config(settings, models, loading, sources, gallery, photos)
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
                done[record["photo"]] = _outcome(record)
                file.write(results.json_line(record))
                file.flush()
    for others in gather(done, shard):
        done |= others
    failed = {photo.name: done[photo.name]["error"] for photo in photos if done[photo.name]["error"]}
    tables = _conclude(done, failed, photos, units, settings, folder) if shard.rank == 0 else []
    if lock:
        lock.close()
    return DetectionReport(folder, tables, len(photos), failed)


def check_views(folder: Path, sources: dict[str, dict], models: ModelSettings, loading: LoadingSettings) -> None:
    """Views and query photos must go through the same DINOv2 at the same size."""
    manifest = read_manifest(folder)
    if manifest is None:
        log.warning("%s has no manifest: taking its views to be of %s", folder, models.features)
        return
    stored, mine = manifest.models["features"], sources["features"]
    if stored["fingerprint"] and mine["fingerprint"] and stored["fingerprint"] != mine["fingerprint"]:
        raise UserError(
            f"{folder} holds views of {stored['source']} ({stored['fingerprint']}), not of {mine['source']} "
            f"({mine['fingerprint']}): give the same --dino_model, or run extraction.py into another --features_folder"
        )
    if manifest.size != models.size:
        raise UserError(
            f"{folder} holds views at --dino_img_size {manifest.size}, not {models.size}: give the same size"
        )
    for role, name in (("grounding", "grounding model"), ("masks", "SAM model")):
        if (
            role in manifest.models
            and role in sources
            and manifest.models[role]["fingerprint"] != sources[role]["fingerprint"]
        ):
            log.warning("the views were made with the %s %s", name, manifest.models[role]["source"])
    if manifest.exif != loading.exif:
        log.warning("the views were made with --exif %s", manifest.exif)


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


def _tested(photos: Sequence[Photo], gallery: Gallery, settings: DetectionSettings) -> list[Photo]:
    """The photos to test on: myvlm has no split, so the photos of the loaded views are left out."""
    kept = list(photos)
    if settings.dataset == "myvlm":
        stems = photo_stems(gallery)
        kept = [photo for photo in photos if photo.path.stem not in stems.get(photo.concepts[0], ())]
        if not kept:
            raise UserError(
                f"all {len(photos)} photos are reference photos: give a smaller --n_training_views, or add photos"
            )
    return kept[: settings.limit]


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
        state = photo.path.stat()
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
        same = interrupted and decisive(json.loads(file.read_text(encoding="utf-8"))) == decisive(config)
        if same and (lock := results.claim(file.parent)):
            log.info("going on with the run in %s", file.parent)
            return file.parent, lock
    folder = results.new_run_folder(runs, f"-{settings.name}")
    lock = results.claim(folder)
    results.write_json(folder / "config.json", config)
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
    return results.plain(
        {
            "photo": matches.photo.name,
            "labels": matches.photo.concepts,
            "detections": {t: [detection.as_json() for detection in own] for t, own in found.items()},
            "similarities": {gallery.keys[c]: matches.best.nearest[c] for c in nearest},
            "error": matches.error,
        }
    )


def _outcome(record: dict) -> dict:
    """What the end of a run needs of each photo at hand: the concepts found at each threshold, and the error.

    The record itself stays in its file: with its similarities, those of many photos would fill the memory.
    """
    found = {t: [detection["concept"] for detection in own] for t, own in record["detections"].items()}
    return {"found": found, "error": record["error"]}


def _show(photo: Photo, detections: Iterable[dict], folder: Path, exif: bool) -> None:
    from pekit.datasets import open_image
    from pekit.prompting import draw_boxes

    found = [Detection(d["concept"], d["score"], tuple(d["box_xyxyn"])) for d in detections]
    path = folder / "overlays" / (photo.name.replace("/", "__") + ".png")
    path.parent.mkdir(exist_ok=True)
    draw_boxes(open_image(photo.path, exif), found).save(path)


# --- the end of a run ---------------------------------------------------------------------------------------------


def _conclude(
    done: dict[str, dict],
    failed: dict[str, str],
    photos: Sequence[Photo],
    units: Sequence[Unit],
    settings: DetectionSettings,
    folder: Path,
) -> list[str]:
    """Write what came of all photos; give a printable table per threshold."""
    read = [photo for photo in photos if photo.name not in failed]
    if not read:
        raise UserError(f"none of the {len(photos)} photos could be read, such as {next(iter(failed.values()))}")
    tables = []
    with closing(results.StoredRecords(sorted(folder.glob("part-*.jsonl")))) as records:
        for threshold in settings.thresholds:
            found = [done[photo.name]["found"][str(threshold)] for photo in read]
            tables.append(_finish(threshold, records, found, read, units, settings, folder))
    # The summary first: stopped in between, a run that is not finished would have lost its records.
    results.write_json(folder / "summary.json", {"photos": len(read), "failed": failed})
    for part in folder.glob("part-*.jsonl"):
        part.unlink()
    (folder / ".lock").unlink(missing_ok=True)
    return tables


def _finish(
    threshold: float,
    records: results.StoredRecords,
    found_keys: Sequence[Sequence[str]],
    photos: Sequence[Photo],
    units: Sequence[Unit],
    settings: DetectionSettings,
    folder: Path,
) -> str:
    """Write predictions, metrics and published arrays of one threshold; give the printable table.

    With several thresholds each has a folder inside the run's.

    Args:
        threshold: one of the run's.
        records: of all photos.
        found_keys: the concepts found in each of the N photos.
        photos: N photos that could be read.
        units: U units to report on.
        settings: of the run.
        folder: of the run.
    """
    if len(settings.thresholds) > 1:
        folder = folder / f"threshold-{threshold}"
    results.write_jsonl(
        folder / "predictions.jsonl",
        (
            {
                "photo": record["photo"],
                "labels": record["labels"],
                "detections": record["detections"][str(threshold)],
                "similarities": record["similarities"],
            }
            for record in (records[photo.name] for photo in photos)
        ),
    )
    detected = [set(keys) for keys in found_keys]
    truth, found = _tables(photos, detected, units, settings.multi_concept)
    inverted = settings.test_split in INVERTED_SPLITS
    measured = metrics.recognition_metrics(truth, found, inverted)
    of_unit, of_mean = metrics.bootstrap_intervals(truth, found, inverted, settings.seed)
    means = metrics.means(measured.values)
    accuracy = "balanced_accuracy" if settings.multi_concept else "weighted_accuracy"
    published = {name: accuracy if name == "accuracy" else name for name in measured.values}
    results.write_json(
        folder / "metrics.json",
        {
            "threshold": threshold,
            "photos": len(photos),
            "photos_without_detection": sum(not own for own in detected) / len(photos),
            "one_minus": inverted,
            "per_concept": {
                unit.name: {
                    **{name: count[u] for name, count in measured.counts.items()},
                    **{published[name]: value[u] for name, value in measured.values.items()},
                    "interval_95": {published[name]: bounds[:, u] for name, bounds in of_unit.items()},
                }
                for u, unit in enumerate(units)
            },
            "means": {published[name]: {**mean, "interval_95": of_mean[name]} for name, mean in means.items()},
        },
    )
    for name in results.PUBLISHED:
        path = results.npy_file(settings.save_folder, settings.name, name, threshold, settings.variation)
        results.save_npy(path, measured.values[name])
    return _table(threshold, units, measured, means, of_mean, settings, len(photos))


def _tables(
    photos: Sequence[Photo], detected: Sequence[set[str]], units: Sequence[Unit], multi_concept: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which units each photo shows, and which were found in it.

    A multi-concept photo is a positive of its own folder only; a unit is found when all its concepts are.

    Returns:
        bool (N, U) each.
    """
    with_concept: dict[str, list[int]] = {}
    for u, unit in enumerate(units):
        for concept in unit.concepts:
            with_concept.setdefault(concept, []).append(u)
    named = {unit.name: u for u, unit in enumerate(units)}
    truth, found = (np.zeros((len(photos), len(units)), dtype=bool) for _ in range(2))
    for n, (photo, own) in enumerate(zip(photos, detected, strict=True)):
        if multi_concept:
            shown = [named[name] for name in (photo.path.parent.name,) if name in named]
        else:
            shown = [u for concept in photo.concepts for u in with_concept.get(concept, ())]
        truth[n, shown] = True
        found[n, [u for key in own for u in with_concept.get(key, ()) if own.issuperset(units[u].concepts)]] = True
    return truth, found


def _table(
    threshold: float,
    units: Sequence[Unit],
    measured: metrics.RecognitionMetrics,
    means: dict[str, dict[str, float]],
    intervals: dict[str, np.ndarray],
    settings: DetectionSettings,
    photos: int,
) -> str:
    """One line per unit and the means, as text."""
    names = list(measured.values)
    titles = [name.replace("_", " ").replace("neg ", "neg. ") for name in names]
    width = max([len(unit.name) for unit in units] + [len("mean without NaN")])
    lines = [f"{settings.name}, {settings.variation}, threshold {threshold}, {photos} photos"]
    if settings.test_split in INVERTED_SPLITS:
        lines[0] += " (each value is 1 - x)"
    lines.append("  ".join([f"{'':{width}}", *(f"{title:>14}" for title in titles), "   gt  detected  correct"]))
    for u, unit in enumerate(units):
        counts = [measured.counts[name][u] for name in ("gt", "detected", "correct")]
        values = [f"{measured.values[name][u]:14.4f}" for name in names]
        lines.append("  ".join([f"{unit.name:{width}}", *values, f"{counts[0]:5d}  {counts[1]:8d}  {counts[2]:7d}"]))
    for title, key in (("mean", "mean"), ("mean without NaN", "mean_without_nan")):
        lines.append("  ".join([f"{title:{width}}", *(f"{means[name][key]:14.4f}" for name in names)]))
    bounds = (f"{f'{low:.3f}-{high:.3f}':>14}" for low, high in (intervals[name] for name in names))
    lines.append("  ".join([f"{'95 % interval':{width}}", *bounds]))
    return "\n".join(lines)
