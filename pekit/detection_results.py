"""What a run of detection leaves: predictions, metrics, the published arrays, and a table for each threshold."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pekit import metrics, results
from pekit.datasets import NEGATIVE_SPLITS, Unit
from pekit.files import write_atomically
from pekit.records import Photo, counted


@dataclass(frozen=True)
class DetectionSettings:
    """What to detect; the fields are detection.py's options.

    Attributes:
        thresholds: one or several, all evaluated from one pass of the models.
        proposals: "boxes" or "masks".
        views_folder: folder of the stored views.
        photos: folder of photos that may show anything; None for those of the data set.
    """

    dataset: str
    multi_concept: bool
    split: str
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
    photos: Path | None = None

    @property
    def name(self) -> str:
        return results.setting_name(self.dataset, self.multi_concept, "photos" if self.photos else self.test_split)


def write_results(
    done: dict[str, dict],
    failed: dict[str, str],
    photos: Sequence[Photo],
    units: Sequence[Unit],
    settings: DetectionSettings,
    folder: Path,
) -> list[str]:
    """Write what came of all photos, and remove the part files of the run; where none could be read, only say so.

    Args:
        done: photo -> the concepts found at each threshold ("found").
        failed: photo -> why it could not be read.
        photos: all of them.
        units: what the metrics are counted over.
        settings: of the run.
        folder: of the run.

    Returns:
        A printable table per threshold.
    """
    read = [photo for photo in photos if photo.name not in failed]
    if not read:
        # Part files and no summary: the same command tries again.
        return [f"none of {counted(len(photos), 'photo')} could be read, such as {next(iter(failed.values()))}"]
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
    """Write predictions and, where it is known what the photos show, metrics and published arrays of one threshold;
    give the printable table.

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
    best = _write_predictions(threshold, records, photos, folder)
    if settings.photos:
        return _finds(threshold, units, best, found_keys, settings)
    detected = [set(keys) for keys in found_keys]
    truth, found = _tables(photos, detected, units, settings.multi_concept)
    inverted = settings.test_split in NEGATIVE_SPLITS
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
    # The published names tell neither some photos from all, nor the reference photos from those of the test.
    whole_test = settings.split == "test" and not settings.limit
    for name in results.PUBLISHED:
        for place in (folder, settings.save_folder) if whole_test else (folder,):
            path = results.npy_file(place, settings.name, name, threshold, settings.variation)
            results.save_npy(path, measured.values[name])
    return _table(threshold, units, measured, means, of_mean, settings, len(photos))


def _write_predictions(
    threshold: float, records: results.StoredRecords, photos: Sequence[Photo], folder: Path
) -> dict[str, tuple[float, str]]:
    """Write ``predictions.jsonl``, and ``detections.csv`` with a line for each detection.

    Returns:
        Concept -> the best score of a detection, and its photo.
    """
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["photo", "concept", "score", "left", "top", "right", "bottom"])
    best: dict[str, tuple[float, str]] = {}

    def predictions() -> Iterator[dict]:
        for photo in photos:
            record = records[photo.name]
            found = record["detections"][str(threshold)]
            for detection in found:
                concept, score = detection["concept"], detection["score"]
                rows.writerow([photo.name, concept, score, *detection["box_xyxyn"]])
                if concept not in best or score > best[concept][0]:
                    best[concept] = score, photo.name
            yield {
                "photo": photo.name,
                "labels": record["labels"],
                "detections": found,
                "similarities": record["similarities"],
            }

    results.write_jsonl(folder / "predictions.jsonl", predictions())
    write_atomically(folder / "detections.csv", table.getvalue())
    return best


def _finds(
    threshold: float,
    units: Sequence[Unit],
    best: Mapping[str, tuple[float, str]],
    found_keys: Sequence[Sequence[str]],
    settings: DetectionSettings,
) -> str:
    """One line per concept, as text: in how many photos it was found, and the one of the best score."""
    counts = Counter(key for keys in found_keys for key in keys)
    width = max(len(unit.name) for unit in units)
    lines = [f"{settings.name}, {settings.variation}, threshold {threshold}, {counted(len(found_keys), 'photo')}"]
    lines.append(f"{'':{width}}  photos  best")
    for unit in units:
        score, photo = best.get(unit.name, (0.0, ""))
        lines.append(f"{unit.name:{width}}  {counts[unit.name]:6d}" + (f"  {score:.2f} {photo}" if photo else ""))
    return "\n".join(lines)


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
    lines = [f"{settings.name}, {settings.variation}, threshold {threshold}, {counted(photos, 'photo')}"]
    if settings.test_split in NEGATIVE_SPLITS:
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
