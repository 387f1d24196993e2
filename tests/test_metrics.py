"""Counts to precision, recall and accuracy: against counts made by hand, photo by photo, and a slow resampling."""

from __future__ import annotations

import math

import numpy as np
import plain
import pytest

from pekit import metrics


def random_tables(seed: int, photos: int = 40, units: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((photos, units)) < 0.3, rng.random((photos, units)) < 0.4


def test_a_table_counted_by_hand() -> None:
    # photo:           1  2  3  4  5  6
    truth = np.array([[1, 1, 1, 0, 0, 0]], dtype=bool).T
    found = np.array([[1, 1, 0, 1, 0, 0]], dtype=bool).T
    measured = metrics.recognition_metrics(truth, found)
    assert {name: int(count[0]) for name, count in measured.counts.items()} == {
        "gt": 3,
        "detected": 3,
        "correct": 2,
        "gt_neg": 3,
        "detected_neg": 3,
        "correct_neg": 2,
    }
    for name in metrics.FOUR:
        assert measured.values[name][0] == pytest.approx(2 / 3)
    uneven = metrics.recognition_metrics(truth, np.array([[1, 0, 0, 1, 1, 0]], dtype=bool).T).values
    assert uneven["precision"][0] == pytest.approx(1 / 3)
    assert uneven["recall"][0] == pytest.approx(1 / 3)
    assert uneven["neg_precision"][0] == pytest.approx(1 / 3)
    assert uneven["neg_recall"][0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("inverted", [False, True])
def test_equal_to_counting_photo_by_photo(inverted: bool) -> None:
    truth, found = random_tables(1)
    measured = metrics.recognition_metrics(truth, found, inverted).values
    for u in range(truth.shape[1]):
        expected = plain.unit_metrics(truth[:, u].tolist(), found[:, u].tolist())
        if inverted:
            expected = {name: 1 - value for name, value in expected.items()}
        for name, value in expected.items():
            assert measured[name][u] == pytest.approx(value, abs=1e-12), name
        if inverted:
            assert "accuracy" not in measured
        else:
            assert measured["accuracy"][u] == pytest.approx((expected["recall"] + expected["neg_recall"]) / 2)


def test_an_empty_denominator_gives_nan_also_where_inverted() -> None:
    truth = np.array([[1, 0], [1, 0]], dtype=bool)  # unit 0 in every photo, unit 1 in none
    found = np.array([[0, 1], [0, 1]], dtype=bool)  # unit 0 never found, unit 1 always
    for inverted in (False, True):
        values = metrics.recognition_metrics(truth, found, inverted).values
        assert math.isnan(values["precision"][0]) and math.isnan(values["neg_recall"][0])
        assert math.isnan(values["recall"][1]) and math.isnan(values["neg_precision"][1])
        assert values["recall"][0] == (1.0 if inverted else 0.0)
        assert values["precision"][1] == (1.0 if inverted else 0.0)
        assert inverted or np.isnan(values["accuracy"]).all()


def test_means_as_they_are_and_without_nan() -> None:
    found = metrics.means({"precision": np.array([0.5, np.nan, 1.0]), "recall": np.array([0.25, 0.75, 0.5])})
    assert math.isnan(found["precision"]["mean"])
    assert found["precision"]["mean_without_nan"] == pytest.approx(0.75)
    assert found["recall"] == {"mean": pytest.approx(0.5), "mean_without_nan": pytest.approx(0.5)}
    nothing = metrics.means({"precision": np.array([np.nan, np.nan])})["precision"]
    assert math.isnan(nothing["mean"]) and math.isnan(nothing["mean_without_nan"])


def test_bootstrap_intervals_like_a_slow_resampling_of_photos() -> None:
    truth, found = random_tables(2, photos=60, units=3)
    per_unit, of_mean = metrics.bootstrap_intervals(truth, found, seed=5, draws=2000)
    rng = np.random.default_rng(99)
    drawn: dict[str, list[list[float]]] = {name: [] for name in metrics.FOUR}
    for _ in range(2000):
        photos = rng.integers(0, len(truth), len(truth))
        for name in metrics.FOUR:
            drawn[name].append([])
        for u in range(truth.shape[1]):
            for name, value in plain.unit_metrics(truth[photos, u].tolist(), found[photos, u].tolist()).items():
                drawn[name][-1].append(value)
    for name in metrics.FOUR:
        table = np.array(drawn[name])
        expected = np.nanpercentile(table, [2.5, 97.5], axis=0)
        np.testing.assert_allclose(per_unit[name], expected, atol=0.035)  # both are estimates from 2000 draws
        np.testing.assert_allclose(of_mean[name], np.nanpercentile(np.nanmean(table, 1), [2.5, 97.5]), atol=0.025)
        measured = metrics.recognition_metrics(truth, found).values[name]
        assert (per_unit[name][0] <= measured).all() and (measured <= per_unit[name][1]).all()


def test_bootstrap_of_units_in_blocks_and_of_equal_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against each unit alone, and the mean against a table of all draws, made with the same photos drawn."""
    truth, found = random_tables(4, photos=21, units=9)
    truth[:, 3], found[:, 3] = truth[:, 7], found[:, 7]
    truth[:, [1, 5]] = found[:, [1, 5]] = False
    monkeypatch.setattr(metrics, "BLOCK", 4)
    per_unit, of_mean = metrics.bootstrap_intervals(truth, found, True, seed=6, draws=200)
    weights = np.random.default_rng(6).multinomial(21, np.full(21, 1 / 21), size=200)
    tables: dict[str, np.ndarray] = {name: np.full((200, 9), np.nan) for name in metrics.FOUR}
    for d, drawn in enumerate(np.repeat(np.arange(21), own) for own in weights):
        for u in range(9):
            for name, value in plain.unit_metrics(truth[drawn, u].tolist(), found[drawn, u].tolist()).items():
                tables[name][d, u] = 1 - value
    assert per_unit.keys() == of_mean.keys() == tables.keys()  # of one_minus splits no accuracy
    for name, table in tables.items():
        for u in range(9):
            known = table[~np.isnan(table[:, u]), u]
            expected = np.percentile(known, [2.5, 97.5]) if len(known) else [np.nan, np.nan]
            np.testing.assert_allclose(per_unit[name][:, u], expected, atol=1e-12)
        np.testing.assert_allclose(of_mean[name], np.percentile(np.nanmean(table, 1), [2.5, 97.5]), atol=1e-12)


def test_bootstrap_is_repeatable_narrower_with_more_photos_and_nan_where_empty() -> None:
    truth, found = random_tables(3)
    one, mean_one = metrics.bootstrap_intervals(truth, found, seed=1)
    two, mean_two = metrics.bootstrap_intervals(truth, found, seed=1)
    for name in metrics.FOUR:
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_array_equal(mean_one[name], mean_two[name])
    wide, narrow = (
        np.ptp(metrics.bootstrap_intervals(np.tile(truth, (n, 1)), np.tile(found, (n, 1)), seed=1)[1]["recall"])
        for n in (1, 16)
    )
    assert narrow == pytest.approx(wide / 4, rel=0.25)  # 16 times the photos: a quarter of the width
    nothing = np.zeros((5, 1), dtype=bool)
    empty, mean_empty = metrics.bootstrap_intervals(nothing, nothing, seed=1)
    assert np.isnan(empty["recall"]).all() and np.isnan(mean_empty["recall"]).all()
    np.testing.assert_array_equal(empty["neg_recall"][:, 0], [1, 1])
