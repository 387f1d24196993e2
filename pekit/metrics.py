"""Recognition metrics: counts to precision, recall and accuracy, with bootstrap intervals (method, step 6). Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FOUR = ("precision", "recall", "neg_precision", "neg_recall")
BLOCK = 1024  # units whose draws are in memory at a time
COUNTS = ("gt", "detected", "correct", "gt_neg", "detected_neg", "correct_neg")


@dataclass(frozen=True)
class RecognitionMetrics:
    """Metrics of U units (concepts, or multi-concept folders).

    Attributes:
        counts: name -> int (U,), for the names in ``COUNTS``.
        values: name -> float (U,), for the names in ``FOUR`` and, unless inverted, "accuracy" (mean of recall and
            negative recall: weighted, or balanced, accuracy); NaN where a denominator is empty.
    """

    counts: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


def _ratios(counts: dict[str, np.ndarray], inverted: bool) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "precision": counts["correct"] / counts["detected"],
            "recall": counts["correct"] / counts["gt"],
            "neg_precision": counts["correct_neg"] / counts["detected_neg"],
            "neg_recall": counts["correct_neg"] / counts["gt_neg"],
        }
    if inverted:
        return {name: 1 - value for name, value in values.items()}  # of these, a mean says nothing
    return {**values, "accuracy": (values["recall"] + values["neg_recall"]) / 2}


def _count(truth: np.ndarray, found: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Counts over photos, each photo counted ``weights`` times: (N, U), (N, U), (..., N) -> (..., U)."""
    cells = (truth, found, truth & found, ~truth, ~found, ~truth & ~found)
    return {name: weights @ cell.astype(weights.dtype) for name, cell in zip(COUNTS, cells, strict=True)}


def recognition_metrics(truth: np.ndarray, found: np.ndarray, inverted: bool = False) -> RecognitionMetrics:
    """Count and divide.

    Args:
        truth: bool (N, U), photo n shows unit u.
        found: bool (N, U), unit u was detected in photo n.
        inverted: report each of the four as 1 - x (splits of this-is-my without the concepts in them).

    Returns:
        Counts and values of the U units; NaN, inverted or not, where a denominator is empty.
    """
    counts = _count(truth, found, np.ones(len(truth), dtype=np.int64))
    return RecognitionMetrics(counts, _ratios(counts, inverted))


def means(values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Average each metric over units.

    Args:
        values: name -> float (U,), from ``recognition_metrics``.

    Returns:
        name -> {"mean": NaN if any unit's value is, "mean_without_nan": of the units that have one}, both NaN where
        there is none.
    """
    result = {}
    for name, value in values.items():
        kept = value[~np.isnan(value)]
        result[name] = {
            "mean": float(value.mean()) if len(value) else float("nan"),
            "mean_without_nan": float(kept.mean()) if len(kept) else float("nan"),
        }
    return result


def bootstrap_intervals(
    truth: np.ndarray, found: np.ndarray, inverted: bool = False, seed: int = 0, draws: int = 1000
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """95 % percentile intervals over photos, drawn with replacement.

    Args:
        truth, found, inverted: as for ``recognition_metrics``.
        seed: of the draws.
        draws: how many.

    Returns:
        per unit: name -> float (2, U); of the mean with NaN left out: name -> float (2,). NaN where a metric is
        empty in every draw.
    """
    photos, units = truth.shape
    weights = (
        np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), size=draws).astype(np.float64)
    )
    # Of many units most are alike, such as those in no photo that are never found: each kind is drawn once, and a
    # block of kinds at a time, so that memory does not grow with the units.
    packed = np.packbits(np.concatenate([truth, found]), axis=0)
    _, first, kind, alike = np.unique(packed, axis=1, return_index=True, return_inverse=True, return_counts=True)
    per_kind = {name: np.empty((2, len(first))) for name in (FOUR if inverted else (*FOUR, "accuracy"))}
    sums, filled = ({name: np.zeros(draws) for name in per_kind} for _ in range(2))
    for start in range(0, len(first), BLOCK):
        block = slice(start, start + BLOCK)
        values = _ratios(_count(truth[:, first[block]], found[:, first[block]], weights), inverted)
        for name, value in values.items():
            per_kind[name][:, block] = _percentiles(value)
            there = ~np.isnan(value)
            sums[name] += np.where(there, value, 0) @ alike[block]
            filled[name] += there @ alike[block]
    with np.errstate(invalid="ignore"):
        means = {name: sums[name] / filled[name] for name in per_kind}
    kind = kind.reshape(units)
    of_mean = {name: _percentiles(mean[:, None])[:, 0] for name, mean in means.items()}
    return {name: bounds[:, kind] for name, bounds in per_kind.items()}, of_mean


def _percentiles(value: np.ndarray) -> np.ndarray:
    """2.5 and 97.5 per cent points down the first axis, NaN left out: (B, U) -> (2, U)."""
    result = np.full((2, value.shape[1]), np.nan)
    some = ~np.isnan(value).all(0)
    result[:, some] = np.nanpercentile(value[:, some], [2.5, 97.5], axis=0)
    return result
