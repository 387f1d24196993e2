"""detection.py on miniatures: its records, metrics and files against the method done slowly."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from conftest import (
    CONCEPTS,
    ROOT,
    SPLITS,
    THRESHOLDS,
    TINY,
    assert_ran,
    assert_refused,
    files_of,
    picture,
    run_folder,
    script_environment,
    write_multi,
    write_myvlm,
    write_photos,
    write_this_is_my,
    write_yollava,
)
from PIL import Image
from transformers import GroundingDinoForObjectDetection

from pekit import detecting, regions, results
from pekit.cli import extraction
from pekit.cli.detection import main
from pekit.datasets import Unit
from pekit.detection_results import DetectionSettings, write_results
from pekit.features import PatchFeatures
from pekit.gallery import without_references
from pekit.names import concept_of_folder
from pekit.pipeline import Matches
from pekit.records import Gallery, Photo, PhotoError, Regions

HALF = ("float32", "bfloat16")
FOUR = ("precision", "recall", "neg_precision", "neg_recall")


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def views_of(folder: Path, names: dict[str, list[str]]) -> dict[str, list[np.ndarray]]:
    """The descriptors of view files; views without a patch are left out."""
    found: dict[str, list[np.ndarray]] = {}
    for key, own in names.items():
        contents = [torch.load(folder / key / name, weights_only=True) for name in own]
        found[key] = [c["descriptor"].numpy() for c in contents if len(c["dino_obj_features"])]
    return found


def check_record(
    record: dict, masks: list[np.ndarray], grid: np.ndarray, views: dict[str, list[np.ndarray]], threshold: float
) -> int:
    """Compare one line of predictions.jsonl with the plain retrieval; gives the number of detections."""
    under = [plain.patches(mask, grid, 14) for mask in masks]
    descriptors = [patches.mean(0) if len(patches) else None for patches in under]
    for key, own in views.items():
        if not own:
            assert record["similarities"][key] is None
            continue
        best = max(plain.cosine(d, v) for d in descriptors if d is not None for v in own)
        assert record["similarities"][key] == pytest.approx(best, abs=5e-6)
    expected = plain.detections(masks, descriptors, views, threshold)
    assert {d["concept"] for d in record["detections"]} == set(expected)
    for found in record["detections"]:
        score, box = expected[found["concept"]]
        assert found["score"] == pytest.approx(score, abs=5e-6)
        assert found["box_xyxyn"] == pytest.approx(box, abs=1e-6)
    return len(expected)


def common(folder: Path, models: Path, dataset: str = "yollava") -> tuple:
    return (
        *("--dataset", dataset, "--data_folder", folder / "data", "--features_folder", folder / "features"),
        *("--models", models, *TINY),
    )


def detect(call: Callable, folder: Path, models: Path, *options: object, dataset: str = "yollava") -> Path:
    """Run detection into a new results folder; gives the run's folder."""
    results = folder / f"results-{len(list(folder.glob('results-*')))}"
    assert_ran(call(main, *common(folder, models, dataset), "--save_folder", results, *options))
    return run_folder(results)


@pytest.fixture
def small(models: Path, tmp_path: Path, call: Callable) -> Path:
    """Two concepts with two views each, three test photos each, everything at 224 px."""
    write_yollava(tmp_path / "data", CONCEPTS[:2], train=2, test=3)
    assert_ran(call(extraction.main, *common(tmp_path, models)))
    return tmp_path


class TestAgainstTheMethodDoneSlowly:
    def test_box_masks(self, box_run: Path, models: Path) -> None:
        reference = plain.Models(models)
        folder = box_run / "features/yollava/extracted_features"
        views = views_of(folder, {key: ["0_0.pt", "1_0.pt", "2_0.pt"] for key in CONCEPTS})
        run = run_folder(box_run / "results")
        records = {
            t: {record["photo"]: record for record in lines(run / f"threshold-{t}" / "predictions.jsonl")}
            for t in THRESHOLDS.split(",")
        }
        photos = [f"YoLLaVA/test/{key}/{n}.png" for key in CONCEPTS for n in (0, 1)]
        counts = dict.fromkeys(records, 0)
        for photo in photos:
            picture = plain.squash(box_run / "data" / photo, 518)
            boxes, scores = reference.boxes(picture, "object.")
            masks = [plain.box_mask(box, 518) for box in boxes[scores > 0.01]]
            grid = reference.grid(picture)
            for threshold, own in records.items():
                assert own[photo]["labels"] == [photo.split("/")[2]]
                counts[threshold] += check_record(own[photo], masks, grid, views, float(threshold))
        assert all(len(own) == len(photos) for own in records.values())
        assert len(set(counts.values())) > 1 and counts["0.85"] > 0  # the thresholds tell detections apart

    def test_sam_masks_and_augmented_views(self, sam_run: Path, models: Path, tmp_path: Path, call: Callable) -> None:
        options = ("--dataset", "yollava", "--data_folder", sam_run / "data", "--features_folder", sam_run / "features")
        options = (*options, "--models", models, *TINY, "--grounding_sam", "--variation", "augment", "--limit", 3)
        assert_ran(call(main, *options, "--detect_thresh", 0.5, "--save_folder", tmp_path))
        reference = plain.Models(models)
        names = {key: [f"{n}_{a}.pt" for n in range(2) for a in range(3)] for key in CONCEPTS}
        views = views_of(sam_run / "features/yollava/extracted_features/gsam", names)
        records = lines(run_folder(tmp_path) / "predictions.jsonl")
        assert len(records) == 3
        found = 0
        for record in records:
            picture = plain.squash(sam_run / "data" / record["photo"], 224)
            boxes, scores = reference.boxes(picture, "object.")
            masks = [plain.box_mask(box, 224) for box in boxes[scores > 0.01]]
            found += check_record(record, masks, reference.grid(picture), views, 0.5)
        assert found

    def test_automatic_masks(self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        """Known masks, some of them without a sampled pixel, in place of what SAM finds."""
        rng = np.random.default_rng(0)
        blobs = np.kron(rng.random((9, 8, 8)) < np.linspace(0.05, 0.6, 9)[:, None, None], np.ones((28, 28))).astype(
            bool
        )
        blobs[4] = False
        blobs[4, 15:20, 15:20] = True  # between the sampled pixels
        areas = []

        def everything(self: object, picture: object, min_area: int) -> Regions:
            areas.append(min_area)
            boxes = np.array([plain.tight_box(mask) for mask in blobs], dtype=np.float32)
            return Regions(boxes, np.full(9, 0.97, dtype=np.float32), blobs)

        monkeypatch.setattr(regions.Segmenter, "everything", everything)
        run = detect(call, small, models, "--proposals", "masks", "--detect_thresh", 0.3, "--limit", 2)
        assert areas == [9000, 9000]  # yollava's own
        reference = plain.Models(models)
        views = views_of(
            small / "features/yollava/extracted_features", {key: ["0_0.pt", "1_0.pt"] for key in CONCEPTS[:2]}
        )
        for record in lines(run / "predictions.jsonl"):
            grid = reference.grid(plain.squash(small / "data" / record["photo"], 224))
            check_record(record, list(blobs), grid, views, 0.3)
        detect(call, small, models, "--proposals", "masks", "--min_mask_area", 5, "--limit", 1)
        assert areas[2:] == [5]


class TestHowModelsRun:
    def test_half_precision_moves_similarities_a_little(self, small: Path, models: Path, call: Callable) -> None:
        whole, half = (lines(detect(call, small, models, "--dtype", d) / "predictions.jsonl") for d in HALF)
        for record, other in zip(whole, half, strict=True):
            assert record["similarities"] != other["similarities"]
            assert record["similarities"] == pytest.approx(other["similarities"], abs=0.03)

    def test_compiled_models_give_the_same(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Traced as for any compiler, but run as they are: no compiler is needed here."""
        options = ("--detect_thresh", 0.3, "--limit", 2)
        plainly = detect(call, small, models, *options)
        compiled, compile_module = [], torch.nn.Module.compile

        def traced(module: torch.nn.Module) -> None:
            compiled.append(type(module).__name__)
            compile_module(module, backend="eager")

        monkeypatch.setattr(torch.nn.Module, "compile", traced)
        run = detect(call, small, models, *options, "--compile")
        assert sorted(compiled) == ["Dinov2Model", "GroundingDinoForObjectDetection"]
        for a, b in zip(*(lines(folder / "predictions.jsonl") for folder in (plainly, run)), strict=True):
            assert a["similarities"] == pytest.approx(b["similarities"], abs=1e-5)
            assert [d["concept"] for d in a["detections"]] == [d["concept"] for d in b["detections"]]


class TestResults:
    def test_metrics_and_arrays_are_those_of_the_predictions(self, box_run: Path) -> None:
        run = run_folder(box_run / "results")
        for threshold in THRESHOLDS.split(","):
            records = lines(run / f"threshold-{threshold}" / "predictions.jsonl")
            metrics = json.loads((run / f"threshold-{threshold}" / "metrics.json").read_text())
            assert list(metrics["per_concept"]) == list(CONCEPTS)
            columns: dict[str, list[float]] = {name: [] for name in FOUR}
            for key in CONCEPTS:
                truth = [key in record["labels"] for record in records]
                found = [any(d["concept"] == key for d in record["detections"]) for record in records]
                for name, value in plain.unit_metrics(truth, found).items():
                    columns[name].append(value)
                    stored = metrics["per_concept"][key][name]
                    assert stored is None if math.isnan(value) else stored == pytest.approx(value)
                    low, high = metrics["per_concept"][key]["interval_95"][name]
                    assert low is None or low <= (value if not math.isnan(value) else low) <= high
                assert metrics["per_concept"][key]["gt"] == sum(truth)
                assert metrics["per_concept"][key]["detected"] == sum(found)
            for name, values in columns.items():
                file = (
                    box_run / "results" / f"yollava-single-{name.replace('ecall', 'ecalls').replace('ision', 'isions')}"
                )
                array = np.load(f"{file}-{threshold}-normal.npy")
                np.testing.assert_allclose(array, values)
                mean = float(np.mean(values))
                assert metrics["means"][name]["mean"] == (None if math.isnan(mean) else pytest.approx(mean))
                some = [value for value in values if not math.isnan(value)]
                if some:
                    assert metrics["means"][name]["mean_without_nan"] == pytest.approx(np.mean(some))
        assert len(list((box_run / "results").glob("*.npy"))) == 12

    def test_the_printed_table(self, box_run: Path) -> None:
        text = (box_run / "detection.py.out").read_text()
        metrics = json.loads((run_folder(box_run / "results") / "threshold-0.6/metrics.json").read_text())
        table = text.split("threshold 0.6,")[1].split("threshold")[0]
        for key in CONCEPTS:
            (row,) = [line for line in table.splitlines() if line.startswith(key)]
            numbers = [float(word) for word in row[len(key) :].split()]
            for name, shown in zip(FOUR, numbers, strict=False):
                value = metrics["per_concept"][key][name]
                assert math.isnan(shown) if value is None else shown == pytest.approx(value, abs=1e-4)
        assert "mean without NaN" in table and table.startswith(" 6 photos\n")
        assert str(run_folder(box_run / "results")) in text

    def test_config(self, box_run: Path, models: Path) -> None:
        config = json.loads((run_folder(box_run / "results") / "config.json").read_text())
        assert config["seed"] == 42
        assert sorted(config["views"]) == sorted(f"{key}/{n}_0.pt" for key in CONCEPTS for n in range(3))
        assert {"torch", "transformers", "numpy", "python"} <= set(config["versions"])
        assert config["models"]["features"]["source"] == str(models / "features")
        assert config["settings"]["thresholds"] == [0.4, 0.6, 0.85]

    def test_progress_and_logs_go_to_stderr(self, box_run: Path) -> None:
        assert "photo/s" in (box_run / "detection.py.err").read_text()
        assert "photo/s" not in (box_run / "detection.py.out").read_text()
        assert "WARNING" in (box_run / "detection.py.err").read_text()

    def test_every_run_has_a_folder_of_its_own(self, small: Path, models: Path, call: Callable) -> None:
        """Even the same command twice, and the results are the same bytes."""
        results = small / "results"
        for _ in range(2):
            assert_ran(call(main, *common(small, models), "--save_folder", results, "--detect_thresh", 0.6))
        one, two = sorted((results / "runs").iterdir())
        assert files_of(one) == files_of(two)
        assert {"config.json", "predictions.jsonl", "metrics.json"} <= files_of(one).keys()

    def test_batches_and_workers_change_nothing(self, small: Path, models: Path, call: Callable) -> None:
        one = lines(detect(call, small, models, "--detect_thresh", 0.6) / "predictions.jsonl")
        run = detect(call, small, models, "--detect_thresh", 0.6, "--batch_size", 4, "--num_workers", 2)
        for a, b in zip(one, lines(run / "predictions.jsonl"), strict=True):
            assert (a["photo"], a["labels"]) == (b["photo"], b["labels"])
            assert a["similarities"] == pytest.approx(b["similarities"], abs=1e-5)
            assert [d["concept"] for d in a["detections"]] == [d["concept"] for d in b["detections"]]

    def test_several_thresholds_equal_single_ones(self, small: Path, models: Path, call: Callable) -> None:
        several = detect(call, small, models, "--detect_thresh", "0.5:0.6:0.1")
        for threshold in ("0.5", "0.6"):
            single = detect(call, small, models, "--detect_thresh", threshold)
            for name in ("predictions.jsonl", "metrics.json"):
                assert (single / name).read_bytes() == (several / f"threshold-{threshold}" / name).read_bytes()

    def test_of_many_concepts_the_nearest_are_recorded(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = detect(call, small, models, "--detect_thresh", 0.5)
        monkeypatch.setattr(detecting, "KEPT_SIMILARITIES", 1)
        cut = detect(call, small, models, "--detect_thresh", 0.5)
        assert (whole / "metrics.json").read_bytes() == (cut / "metrics.json").read_bytes()
        lines = ((run / "predictions.jsonl").read_text().splitlines() for run in (whole, cut))
        for every, record in (map(json.loads, pair) for pair in zip(*lines, strict=True)):
            nearest = max(every["similarities"], key=every["similarities"].get)
            assert record == every | {"similarities": {nearest: every["similarities"][nearest]}}

    def test_show_draws_the_photos(self, small: Path, models: Path, call: Callable) -> None:
        run = detect(call, small, models, "--show", "--limit", 2, "--detect_thresh", 0.5)
        drawn = sorted(path for path in run.rglob("*.png"))
        assert len(drawn) == 2
        with Image.open(drawn[0]) as image:
            assert image.size == (80, 60)  # the photo's own size

    def test_show_draws_each_photo_into_a_file_of_its_own(self, small: Path, models: Path, call: Callable) -> None:
        test = small / "data/YoLLaVA/test"
        for folder, name in (("a", "b__c.png"), ("a__b", "c.png"), ("a__b", "c.jpg")):
            write_photos(test / folder, [name])
        run = detect(call, small, models, "--show", "--limit", 3, "--detect_thresh", 0.5)
        drawn = sorted(path.relative_to(run).as_posix() for path in run.rglob("*.png"))
        own = "overlays/YoLLaVA/test"
        assert drawn == [f"{own}/a/b__c.png.png", f"{own}/a__b/c.jpg.png", f"{own}/a__b/c.png.png"]

    def test_show_draws_the_detections_at_the_first_threshold(self, small: Path, models: Path, call: Callable) -> None:
        drawn = []
        for thresholds in ("-1", "-1,1"):  # at -1 something is found, at 1 nothing
            run = detect(call, small, models, "--show", "--limit", 1, f"--detect_thresh={thresholds}")
            (file,) = run.rglob("*.png")
            drawn.append(file.read_bytes())
        assert drawn[0] == drawn[1]

    def test_show_draws_turned_photos_turned(self, small: Path, models: Path, call: Callable) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        for photo in (small / "data/YoLLaVA/test").rglob("*.png"):
            picture(7).save(photo, exif=exif)
        for option, size in ((), (80, 60)), (("--exif", "True"), (60, 80)):
            run = detect(call, small, models, "--show", "--limit", 1, "--detect_thresh", 0.5, *option)
            (drawn,) = run.rglob("*.png")
            with Image.open(drawn) as image:
                assert image.size == size
        said = "6 of the first 6 photos have an EXIF orientation"
        for option, told in (((), True), (("--exif", "True"), False)):
            result = call(main, *common(small, models), "--save_folder", small / "r", "--limit", 1, *option)
            assert_ran(result)
            assert (said in result.stderr) is told

    def test_show_names_what_it_draws(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []

        def draw(image: Image.Image, found: list, labels: list) -> Image.Image:
            written.append(labels)
            return image

        monkeypatch.setattr(detecting, "draw_boxes", draw)
        run = detect(call, small, models, "--show", "--limit", 1, "--detect_thresh=-1")
        [record] = lines(run / "predictions.jsonl")
        assert record["detections"]
        assert written == [[f"{found['concept']} {found['score']:.2f}" for found in record["detections"]]]


HERE = [0.25, 0.25, 0.5, 0.75]


class TestUnlabelledPhotos:
    @pytest.mark.parametrize("dataset", ["yollava", "myvlm"])
    def test_what_is_found_is_listed(self, models: Path, tmp_path: Path, call: Callable, dataset: str) -> None:
        if dataset == "yollava":
            write_yollava(tmp_path / "data", CONCEPTS)
        else:
            write_myvlm(tmp_path / "data", CONCEPTS)
        write_photos(tmp_path / "mine/inside", ["0.png"], seed=5)
        references = sorted((tmp_path / "data").rglob("*.png" if dataset == "yollava" else "*.jpg"))
        shutil.copy(references[0], tmp_path / "mine")
        run = common(tmp_path, models, dataset)
        assert_ran(call(extraction.main, *run))
        search = (*run, "--photos", tmp_path / "mine", "--save_folder", tmp_path / "r")
        result = call(main, *search, "--detect_thresh=-1,0.999")
        assert_ran(result)
        assert "negatives" not in result.stderr and "test photos" not in result.stderr
        folder = run_folder(tmp_path / "r")
        assert folder.name.endswith(f"-{dataset}-single-photos")
        written = sorted(path.name for path in (tmp_path / "r").rglob("*") if path.is_file())
        assert written == ["config.json", *["detections.csv"] * 2, *["predictions.jsonl"] * 2, "summary.json"]
        every = lines(folder / "threshold--1.0/predictions.jsonl")
        assert [record["photo"] for record in every] == [references[0].name, "inside/0.png"]
        assert [record["labels"] for record in every] == [[], []]
        # the photo that a view was made of is there, too, and found at a threshold that nothing else passes
        tables = result.stdout.split("\n\n")
        for table, threshold in zip(tables, ("-1.0", "0.999"), strict=False):
            found = lines(folder / f"threshold-{threshold}/predictions.jsonl")
            assert f"threshold {threshold}, 2 photos" in table
            for concept in CONCEPTS:
                scores = {r["photo"]: d["score"] for r in found for d in r["detections"] if d["concept"] == concept}
                (line,) = (line for line in table.splitlines() if line.startswith(f"{concept} "))
                best = max(scores, key=scores.__getitem__, default="")
                assert line.split() == [concept, str(len(scores)), *([f"{scores[best]:.2f}", best] if best else [])]
            with (folder / f"threshold-{threshold}/detections.csv").open(encoding="utf-8", newline="") as file:
                rows = [*csv.DictReader(file)]
            assert [(row["photo"], row["concept"]) for row in rows] == [
                (record["photo"], detection["concept"]) for record in found for detection in record["detections"]
            ]
            boxes = [[float(row[side]) for side in ("left", "top", "right", "bottom")] for row in rows]
            assert boxes == [detection["box_xyxyn"] for record in found for detection in record["detections"]]
        assert any(record["detections"] for record in every)

    def test_its_own_overlays_are_not_searched(self, small: Path, models: Path, call: Callable) -> None:
        for _ in range(2):
            search = ("--photos", small, "--save_folder", small / "r", "--show", "--detect_thresh", 0.5)
            result = call(main, *common(small, models), *search)
            assert_ran(result)
            assert "threshold 0.5, 10 photos" in result.stdout  # 4 of train, 6 of test

    def test_options_that_do_not_go_together(self, small: Path, models: Path, tmp_path: Path, call: Callable) -> None:
        run = (*common(small, models), "--photos", tmp_path / "none", "--save_folder", tmp_path / "r")
        assert_refused(call(main, *run), "--photos", "is no folder")
        assert_refused(call(main, *run, "--test_split", "Fake"), "--photos", "leave --test_split out")
        assert not (tmp_path / "r").exists()


class TestMeasuredByHand:
    """Records of a run made up for the test, and what must come of them."""

    SETTINGS = DetectionSettings(
        *("this-is-my", False, "test", None, "normal", 1, (0.5,), "boxes", 0, 100.0, 3, None, Path(), Path(), False)
    )

    def measure(self, folder: Path, found: dict[str, str], *units: str, **more: object) -> tuple[dict, list[list[str]]]:
        """metrics.json and the words of the table; the concepts a photo shows are letters in its folder's name."""
        settings = replace(self.SETTINGS, save_folder=folder, **more)  # type: ignore[arg-type]
        photos = [Photo(Path(name), name, tuple(name.split("/")[0].split("_and_"))) for name in found]
        detections = {
            name: {"0.5": [{"concept": k, "score": 0.9, "box_xyxyn": HERE} for k in own]} for name, own in found.items()
        }
        records = [{"photo": n, "labels": [], "similarities": {}, "detections": d} for n, d in detections.items()]
        results.write_jsonl(folder / "part-0000-0.jsonl", records)
        done = {name: {"found": {"0.5": list(own)}, "error": None} for name, own in found.items()}
        counted = [Unit(name, tuple(name.split("_and_"))) for name in units]
        (table,) = write_results(done, {}, photos, counted, settings, folder)
        return json.loads((folder / "metrics.json").read_text()), [line.split() for line in table.splitlines()]

    def test_intervals_are_drawn_by_the_runs_seed(self, tmp_path: Path) -> None:
        found = {f"{'ab'[n % 2]}/{n}": "aab"[n % 3] for n in range(9)}
        intervals = [
            [
                own["interval_95"]
                for own in self.measure(tmp_path, found, "a", "b", seed=seed)[0]["per_concept"].values()
            ]
            for seed in (3, 3, 4)
        ]
        assert intervals[0] == intervals[1] != intervals[2]

    def test_a_photo_in_which_one_of_a_pair_is_found_has_a_detection(self, tmp_path: Path) -> None:
        found = {"a_and_b/0": "a", "a_and_b/1": "", "a_and_b/2": "ab", "a_and_b/3": "b"}
        measured, _ = self.measure(tmp_path, found, "a_and_b", multi_concept=True)
        assert measured["photos_without_detection"] == 0.25
        assert measured["per_concept"]["a_and_b"]["recall"] == 0.25

    def test_a_photo_of_a_pair_is_a_negative_of_pairs_that_share_a_concept_with_it(self, tmp_path: Path) -> None:
        found = {"a_and_b/0": "abc", "a_and_c/0": "abc", "a_and_c/1": ""}
        measured, _ = self.measure(tmp_path, found, "a_and_b", "a_and_c", multi_concept=True)
        counts = [[own[name] for name in ("gt", "gt_neg", "correct")] for own in measured["per_concept"].values()]
        assert counts == [[1, 2, 1], [2, 1, 1]]

    def test_the_tables_means_with_and_without_nan(self, tmp_path: Path) -> None:
        _, rows = self.measure(tmp_path, {"a/0": "a", "b/0": ""}, "a", "b")
        (whole,) = (row for row in rows if row[0] == "mean" and row[1] != "without")
        (some,) = (row for row in rows if row[:3] == ["mean", "without", "NaN"])
        assert (whole[1], some[3]) == ("nan", "1.0000")  # the precision: b is never found


class TestViewsInUse:
    def test_a_seeded_draw_where_more_are_stored(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        (tmp_path / "data").symlink_to(box_run / "data")
        (tmp_path / "features").symlink_to(box_run / "features")
        options = ("--n_training_views", 2, "--limit", 1, "--dino_img_size", 518)
        views = [
            json.loads((detect(call, tmp_path, models, *options, "--seed", seed) / "config.json").read_text())["views"]
            for seed in (1, 1, 2, 3)
        ]
        assert all(len(own) == 6 for own in views)
        assert views[0] == views[1]
        assert len({tuple(own) for own in views}) > 1

    def test_one_view_and_different_numbers(self, small: Path, models: Path, call: Callable) -> None:
        folder = small / "features/yollava/extracted_features"
        (folder / "lamp/0_0.pt").unlink()
        names = {"pig-cup": ["0_0.pt", "1_0.pt"], "lamp": ["1_0.pt"]}
        reference = plain.Models(models)
        run = detect(call, small, models, "--detect_thresh", 0.6, "--limit", 4)
        for record in lines(run / "predictions.jsonl"):
            picture = plain.squash(small / "data" / record["photo"], 224)
            boxes, _ = reference.boxes(picture, "object.")
            masks = [plain.box_mask(box, 224) for box in boxes]
            check_record(record, masks, reference.grid(picture), views_of(folder, names), 0.6)
        (folder / "pig-cup/1_0.pt").unlink()
        assert_ran(call(main, *common(small, models), "--save_folder", small / "r", "--n_training_views", 1))

    def test_an_empty_view_matches_nothing(self, small: Path, models: Path, call: Callable) -> None:
        for file in (small / "features/yollava/extracted_features/lamp").glob("*.pt"):
            content = torch.load(file, weights_only=True)
            content["dino_obj_features"] = content["dino_obj_features"][:0]
            content["descriptor"] = torch.zeros_like(content["descriptor"])
            torch.save(content, file)
        result = call(main, *common(small, models), "--save_folder", small / "r", "--detect_thresh", -1)
        assert_ran(result)
        assert "lamp/0_0.pt" in result.stderr
        for record in lines(run_folder(small / "r") / "predictions.jsonl"):
            assert [d["concept"] for d in record["detections"]] == ["pig-cup"]
            assert record["similarities"]["lamp"] is None

    def test_augmentations_that_are_not_there(self, small: Path, models: Path, call: Callable) -> None:
        run = (*common(small, models), "--save_folder", small / "r")
        assert_refused(call(main, *run, "--variation", "augment"), "no augmented views", "extraction.py")

    def test_no_views(self, small: Path, models: Path, call: Callable) -> None:
        run = (*common(small, models), "--save_folder", small / "r")
        assert_refused(call(main, *run, "--grounding_sam"), "gsam, but in", "give --grounding_sam False")
        shutil.rmtree(small / "features/yollava/extracted_features/lamp")
        assert_refused(call(main, *run), "'lamp'", "extraction.py")
        assert_refused(call(main, *run, "--features_folder", small / "nowhere"), "no views", "nowhere", "extraction.py")

    def test_no_folder_is_made_for_a_device_that_is_not_there(
        self, small: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        run = (*common(small, models), "--save_folder", tmp_path / "r", "--device", "cuda:7")
        assert_refused(call(main, *run), "cuda:7")
        assert not (tmp_path / "r").exists()

    def test_a_limit_leaves_out_concepts_without_views(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_yollava(tmp_path / "data", CONCEPTS, train=2, test=2)  # pig-cup is a published one, so the first
        run = (*common(tmp_path, models), "--limit", 3)
        result = call(extraction.main, *run)
        assert_ran(result)
        assert "3 views made, 0 kept, of 2 of the 3 concepts" in result.stdout
        result = call(main, *run, "--save_folder", tmp_path / "r", "--detect_thresh", -1)
        assert_ran(result)
        assert result.stderr.count("1 of 3 concepts have no views") == 1
        folder = run_folder(tmp_path / "r")
        for record in lines(folder / "predictions.jsonl"):
            assert record["similarities"].keys() == {"pig-cup", "lamp"}
        assert list(json.loads((folder / "metrics.json").read_text())["per_concept"]) == ["pig-cup", "lamp"]
        assert_refused(call(main, *common(tmp_path, models), "--save_folder", tmp_path / "r"), "'teddy-plush'")
        for concept in ("pig-cup", "lamp"):
            views = tmp_path / "features/yollava/extracted_features" / concept
            views.rename(views.with_name(f"other-{concept}"))
        assert_refused(call(main, *run), "'pig-cup'", "extraction.py")

    def test_photos_of_the_views_own_split_are_told(
        self, small: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        run = (*common(small, models), "--save_folder", tmp_path / "r", "--limit", 1)
        for split, told in (("train", True), ("test", False)):
            result = call(main, *run, "--split", split)
            assert_ran(result)
            assert ("the views are of --split train, too" in result.stderr) is told

    @pytest.mark.parametrize("value", ["nan", "-1", "101", "all"])
    def test_a_share_that_is_none(self, small: Path, models: Path, call: Callable, value: str) -> None:
        assert_refused(call(main, *common(small, models), "--box_overlap_thresh", value), value, "0 to 100")

    def test_a_trial_leaves_the_arrays_of_a_whole_run_alone(
        self, small: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        run = (*common(small, models), "--save_folder", tmp_path / "r")
        assert_ran(call(main, *run))
        whole = {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.npy")}
        assert len(whole) == 4
        (folder,) = (tmp_path / "r/runs").iterdir()
        assert {path.name: path.read_bytes() for path in folder.glob("*.npy")} == whole
        for other in (("--limit", 1), ("--split", "train")):  # nor do reference photos count as those of the test
            shutil.rmtree(folder)
            assert_ran(call(main, *run, *other))
            assert {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.npy")} == whole
            (folder,) = (tmp_path / "r/runs").iterdir()
            assert {path.name for path in folder.glob("*.npy")} == whole.keys()
            assert np.load(next(folder.glob("*-recalls-*.npy"))).shape == (2,)

    def test_a_limit_that_leaves_no_pair_of_concepts(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_multi(tmp_path / "data", ["Alex-woman", "Alexs hat-hat"], ["Alex_and_Alexs hat"], train=1, test=1)
        run = (*common(tmp_path, models, "this-is-my"), "--multi_concept", "--limit", 1)
        assert_ran(call(extraction.main, *run))
        assert_refused(call(main, *run, "--save_folder", tmp_path / "r"), "extraction.py without --limit")

    def test_views_of_another_model_or_size(self, small: Path, models: Path, tmp_path: Path, call: Callable) -> None:
        from pekit.sample.models import write_model

        write_model("features", tmp_path / "other", seed=77)
        run = (*common(small, models), "--save_folder", small / "r")
        assert_refused(call(main, *run, "--dino_model", tmp_path / "other"), "other", "--dino_model")
        assert_refused(call(main, *run, "--dino_img_size", 280), "224", "280")

    def test_files_of_the_released_code(self, small: Path, models: Path, call: Callable) -> None:
        """The same patches as the released code stores them give the same results, up to half precision."""
        ours = detect(call, small, models, "--detect_thresh", 0.6)
        folder = small / "features/yollava/extracted_features"
        (folder / "manifest.json").unlink()
        for file in folder.glob("*/*.pt"):
            content = torch.load(file, weights_only=True)
            features = content["dino_obj_features"].float()
            released = {"dino_obj_features": features, "npy_image": np.zeros((4, 4, 3), dtype=np.int32), "sam_mask": []}
            torch.save(released, file.with_name(file.name.replace("_0.pt", "_1.pt")))
            file.unlink()
        theirs = detect(call, small, models, "--detect_thresh", 0.6)
        for a, b in zip(lines(ours / "predictions.jsonl"), lines(theirs / "predictions.jsonl"), strict=True):
            assert a["similarities"] == pytest.approx(b["similarities"], abs=1e-3)


class TestMyvlm:
    def test_a_reference_photo_that_was_renamed_is_told(self, models: Path, tmp_path: Path, call: Callable) -> None:
        folder = write_myvlm(tmp_path / "data", ["red_chicken", "bull"], photos=3)
        run = (*common(tmp_path, models, "myvlm"), "--n_training_views", 2)
        assert_ran(call(extraction.main, *run))
        assert "not there" not in call(main, *run, "--save_folder", folder / "r").stderr
        photo = folder / "myvlm/data/bull/bull_0.jpg"
        photo.rename(photo.with_name("toro.jpg"))
        result = call(main, *run, "--save_folder", folder / "r")
        assert_ran(result)
        assert "1 view in use of photos that are not there, such as bull_0 of bull" in result.stderr

    def test_photos_of_loaded_views_are_left_out(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_myvlm(tmp_path / "data", ["red_chicken", "bull"], photos=4)
        write_photos(tmp_path / "data/myvlm/data/bull", ["bull_9.jpeg", "bull_10.JPG"], seed=99)
        run = common(tmp_path, models, "myvlm")
        assert_ran(call(extraction.main, *run, "--n_training_views", 2))
        tested = lines(detect(call, tmp_path, models, dataset="myvlm") / "predictions.jsonl")
        names = [record["photo"].removeprefix("myvlm/data/") for record in tested]
        assert names == [
            *("red_chicken/red_chicken_2.jpg", "red_chicken/red_chicken_3.jpg"),
            *("bull/bull_2.jpg", "bull/bull_3.jpg", "bull/bull_9.jpeg", "bull/bull_10.JPG"),
        ] or names == [
            *("bull/bull_2.jpg", "bull/bull_3.jpg", "bull/bull_9.jpeg", "bull/bull_10.JPG"),
            *("red_chicken/red_chicken_2.jpg", "red_chicken/red_chicken_3.jpg"),
        ]
        # a draw of one of two stored views sets the other one's photo free
        run_dir = detect(call, tmp_path, models, "--n_training_views", 1, dataset="myvlm")
        config = json.loads((run_dir / "config.json").read_text())
        used = {Path(name).stem.rpartition("_")[0] for name in config["views"]}
        stems = [Path(record["photo"]).stem for record in lines(run_dir / "predictions.jsonl")]
        assert len(used) == 2 and len(stems) == 8 and not used & set(stems)

    def test_a_limit_counts_photos_that_are_no_references(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_myvlm(tmp_path / "data", ["bull"], photos=4)
        run = common(tmp_path, models, "myvlm")
        assert_ran(call(extraction.main, *run, "--n_training_views", 2))
        tested = lines(detect(call, tmp_path, models, "--limit", 1, dataset="myvlm") / "predictions.jsonl")
        assert [record["photo"] for record in tested] == ["myvlm/data/bull/bull_2.jpg"]

    def test_a_reference_photo_of_one_concept_leaves_those_named_alike_of_others(self) -> None:
        keys = ("red_chicken", "bull")
        concepts = tuple(concept_of_folder("myvlm", key) for key in keys)
        files = ("red_chicken/1_0.pt", "red_chicken/1_3.pt", "bull/2_0.pt")
        gallery = Gallery(concepts, np.ones((2, 2, 3)), np.ones((2, 2), dtype=bool), files)
        photos = [Photo(Path(f"data/{key}/{n}.jpg"), f"data/{key}/{n}.jpg", (key,)) for key in keys for n in (1, 2, 3)]
        kept = without_references(photos, gallery)
        assert [photo.name.removeprefix("data/") for photo in kept] == [
            *("red_chicken/2.jpg", "red_chicken/3.jpg"),
            *("bull/1.jpg", "bull/3.jpg"),
        ]

    def test_nothing_left_to_test_on(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_myvlm(tmp_path / "data", ["bull"], photos=1)
        run = common(tmp_path, models, "myvlm")
        assert_ran(call(extraction.main, *run))
        assert_refused(call(main, *run, "--save_folder", tmp_path / "r"), "reference photos", "(1 photo)")


class TestThisIsMy:
    KEYS = ("Reynards keyboard-keyboard", "Reynards work chair-chair")

    def test_all_splits_of_single_concept(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_this_is_my(tmp_path / "data", self.KEYS, train=1, test=1)
        positive = tmp_path / "data/This-is-My-Img/Single-concept/test/Positive"
        write_photos(positive / self.KEYS[0], ["v1_double.png"], seed=7)
        run = common(tmp_path, models, "this-is-my")
        assert_ran(call(extraction.main, *run))
        results = tmp_path / "results"
        for split, name in (
            (None, "positive"),
            ("Fake", "fake"),
            ("Negative (Hard)", "negative_hard"),
            ("Negative (Other)", "negative_other"),
        ):
            options = ("--save_folder", results, "--detect_thresh", 0.6, *(("--test_split", split) if split else ()))
            result = call(main, *run, *options)
            assert_ran(result)
            folder = Path(re.findall(r"results in (.*)", result.stdout)[0])
            records = lines(folder / "predictions.jsonl")
            assert all(f"/test/{split or 'Positive'}/" in record["photo"] for record in records)
            if split is None:
                double = [record for record in records if record["photo"].endswith("_double.png")]
                assert [set(record["labels"]) for record in double] == [set(self.KEYS)]
            metrics = json.loads((folder / "metrics.json").read_text())
            for u, key in enumerate(self.KEYS):
                truth = [key in record["labels"] for record in records]
                found = [any(d["concept"] == key for d in record["detections"]) for record in records]
                for short, value in plain.unit_metrics(truth, found).items():
                    expected = 1 - value if split else value
                    plural = {"precision": "precisions", "recall": "recalls"}[short.removeprefix("neg_")]
                    plural = f"neg_{plural}" if short.startswith("neg_") else plural
                    array = np.load(results / f"this-is-my-single-{name}-{plural}-0.6-normal.npy")
                    np.testing.assert_allclose(array[u], expected)
                    shown = metrics["per_concept"][key][short]
                    assert shown is None if math.isnan(expected) else shown == pytest.approx(expected)

    def test_multi_concept(self, models: Path, tmp_path: Path, call: Callable) -> None:
        keys = ["Alex-woman", "Alexs hat-hat", "Casey-man", "Caseys son-man"]
        pairs = ["Alex_and_Alexs hat", "Casey_and_Caseys son"]
        write_multi(tmp_path / "data", keys, pairs, train=1, test=4)
        run = (*common(tmp_path, models, "this-is-my"), "--multi_concept")
        assert_ran(call(extraction.main, *run))
        results = tmp_path / "results"
        assert_ran(call(main, *run, "--save_folder", results, "--detect_thresh", "0.2,0.5"))
        folder = run_folder(results)
        seen = 0
        for threshold in ("0.2", "0.5"):
            records = lines(folder / f"threshold-{threshold}" / "predictions.jsonl")
            metrics = json.loads((folder / f"threshold-{threshold}" / "metrics.json").read_text())
            assert len(records) == 8 and set(metrics["per_concept"]) == set(pairs)
            for pair, own in (
                (pairs[0], {"Alex-woman", "Alexs hat-hat"}),
                (pairs[1], {"Casey-man", "Caseys son-man"}),
            ):
                truth = [f"/{pair}/" in record["photo"] for record in records]
                assert [set(r["labels"]) == own for r in records] == truth
                found = [own <= {d["concept"] for d in record["detections"]} for record in records]
                seen += sum(found)
                expected = plain.unit_metrics(truth, found)
                stored = metrics["per_concept"][pair]
                for name, value in expected.items():
                    assert stored[name] is None if math.isnan(value) else stored[name] == pytest.approx(value)
                balanced = (expected["recall"] + expected["neg_recall"]) / 2
                assert stored["balanced_accuracy"] == pytest.approx(balanced)
            assert (results / f"this-is-my-multi-recalls-{threshold}-normal.npy").is_file()
        assert seen  # a unit was found, so all of its concepts were


class TestNumbersThatAreNotFinite:
    """What a number format too small for a model gives."""

    def refuse(self, call: Callable, small: Path, models: Path, *words: str) -> None:
        run = (*common(small, models), "--save_folder", small / "r")
        assert_refused(call(main, *run), "not finite", "--dtype float32", *words)

    def test_of_grounding_dino(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heads = GroundingDinoForObjectDetection.forward

        def overflow(*args: object, **kwargs: object) -> object:
            output = heads(*args, **kwargs)
            output.logits[0, 0] = math.nan
            return output

        monkeypatch.setattr(GroundingDinoForObjectDetection, "forward", overflow)
        self.refuse(call, small, models, "Grounding DINO")

    def test_of_dino(self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        grids = PatchFeatures.__call__

        def overflow(*args: object) -> torch.Tensor:
            grid = grids(*args).clone()
            grid[:, 3] = math.nan
            return grid

        monkeypatch.setattr(PatchFeatures, "__call__", overflow)
        self.refuse(call, small, models, "YoLLaVA/test/")
        again = call(extraction.main, *common(small, models), "--overwrite")
        assert_refused(again, "not finite", "--dtype float32", "YoLLaVA/train/")


class TestZeroProposals:
    def test_photos_without_a_proposal(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told = "nothing was proposed in any"
        assert told not in call(main, *common(small, models), "--save_folder", small / "r").stderr
        monkeypatch.setattr(regions, "PROPOSAL_SCORE", 1.0)
        assert told in call(main, *common(small, models), "--save_folder", small / "r").stderr
        run = detect(call, small, models)
        for record in lines(run / "predictions.jsonl"):
            assert record["detections"] == [] and set(record["similarities"].values()) == {None}
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["per_concept"]["lamp"]["precision"] is None
        assert metrics["per_concept"]["lamp"]["recall"] == 0
        assert metrics["per_concept"]["lamp"]["neg_recall"] == 1


class TestPhotosThatCannotBeRead:
    def test_the_others_are_finished_and_counted(self, small: Path, models: Path, call: Callable) -> None:
        (small / "data/YoLLaVA/test/lamp/1.png").write_bytes(b"no image")
        run = (*common(small, models), "--save_folder", small / "r", "--detect_thresh", 0.6)
        result = call(main, *run)
        assert_ran(result, 1)
        assert "lamp/1.png" in result.stdout and "1 of 6 photos" in result.stdout
        records = lines(run_folder(small / "r") / "predictions.jsonl")
        assert len(records) == 5 and not any(record["photo"].endswith("lamp/1.png") for record in records)
        metrics = json.loads((run_folder(small / "r") / "metrics.json").read_text())
        assert metrics["per_concept"]["lamp"]["gt"] == 2
        assert_refused(call(main, *run, "--strict"), "lamp/1.png", "--strict")

    def test_none_can_be_read(self, small: Path, models: Path, call: Callable) -> None:
        for path in (small / "data/YoLLaVA/test").rglob("*.png"):
            path.write_bytes(b"no image")
        for options, count in (((), "6 photos"), (("--limit", 1), "1 photo")):
            run = (*common(small, models), "--save_folder", small / f"r{count}", *options)
            for _ in range(2):  # the same run goes on
                result = call(main, *run)
                assert_ran(result, 1)
                assert (
                    f"none of {count} could be read, such as {small / 'data/YoLLaVA/test/lamp/0.png'}" in result.stdout
                )
                assert f"{count[0]} of {count} could not be read" in result.stdout
                folder = run_folder(small / f"r{count}")
                assert not list(folder.parents[1].rglob("*.npy")) and not (folder / "summary.json").exists()


class TestGoingOn:
    def test_after_a_kill(self, small: Path, models: Path, call: Callable) -> None:
        for key in CONCEPTS[:2]:
            write_photos(small / "data/YoLLaVA/test" / key, [f"{n}.png" for n in range(3, 14)], seed=500 + len(key))
        run = (*common(small, models), "--detect_thresh", "0.5,0.6")
        assert_ran(call(main, *run, "--save_folder", small / "whole"))

        killed = small / "killed"
        command = [sys.executable, str(ROOT / "detection.py"), *map(str, run), "--save_folder", str(killed)]

        def written() -> int:
            return sum(len(path.read_text().splitlines()) for path in killed.glob("runs/*/part*"))

        with subprocess.Popen(command, stderr=subprocess.PIPE, env=script_environment()) as process:
            end = time.monotonic() + 200
            while written() < 4 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        before = written()
        assert 4 <= before < 28 and not list(killed.rglob("predictions.jsonl"))
        result = call(main, *run, "--save_folder", killed)
        assert_ran(result)
        assert f"{28 - before}/{28 - before}" in result.stderr  # only what was missing
        folder = run_folder(killed)  # the same folder went on
        made, expected = files_of(folder), files_of(run_folder(small / "whole"))
        assert made.keys() == expected.keys()
        del made["config.json"], expected["config.json"]  # the two name different save folders
        assert made == expected
        for array in (small / "whole").glob("*.npy"):
            assert (killed / array.name).read_bytes() == array.read_bytes()

    def test_a_photo_that_was_replaced_starts_a_new_run(self, small: Path, models: Path, call: Callable) -> None:
        folder = detect(call, small, models, "--limit", 2)
        results = folder.parents[1]
        run = (*common(small, models), "--limit", 2, "--save_folder", results)
        (folder / "summary.json").unlink()  # as if it had been interrupted
        assert_ran(call(main, *run))
        assert len(list((results / "runs").iterdir())) == 1
        (folder / "summary.json").unlink()
        photo = small / "data" / lines(folder / "predictions.jsonl")[0]["photo"]
        write_photos(photo.parent, [photo.name], seed=900)
        assert_ran(call(main, *run))
        assert len(list((results / "runs").iterdir())) == 2

    def test_a_photo_replaced_by_one_of_its_size_starts_a_new_run(
        self, small: Path, models: Path, call: Callable
    ) -> None:
        photo = small / "data/YoLLaVA/test/lamp/0.png"
        picture(1).save(photo, "BMP")  # every picture of this format and size takes as many bytes
        size = photo.stat().st_size
        folder = detect(call, small, models, "--limit", 1)
        (folder / "summary.json").unlink()  # as if it had been interrupted
        picture(2).save(photo, "BMP")
        assert photo.stat().st_size == size and lines(folder / "predictions.jsonl")[0]["photo"].endswith("lamp/0.png")
        results = folder.parents[1]
        assert_ran(call(main, *common(small, models), "--limit", 1, "--save_folder", results))
        assert len(list((results / "runs").iterdir())) == 2

    def test_photos_that_could_not_be_read_are_tried_again(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the network drive they lie on was away."""

        def away(path: Path, exif: bool) -> None:
            raise PhotoError(f"{path} cannot be read")

        run = (*common(small, models), "--save_folder", small / "r", "--limit", 2)
        with monkeypatch.context() as unplugged:
            unplugged.setattr("pekit.pictures.open_image", away)
            assert_ran(call(main, *run), 1)
        assert_ran(call(main, *run))
        assert len(lines(run_folder(small / "r") / "predictions.jsonl")) == 2  # the same run went on

    def test_after_a_stop_before_the_summary(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_json = results.write_json

        def stop(path: Path, value: object) -> None:
            if path.name == "summary.json":
                raise KeyboardInterrupt
            write_json(path, value)

        run = (*common(small, models), "--save_folder", small / "r")
        with monkeypatch.context() as stopped:
            stopped.setattr(results, "write_json", stop)
            assert_ran(call(main, *run), 130)
        with monkeypatch.context() as finished:  # nothing is left for the models to do
            finished.setattr(detecting, "match_photos", lambda *_: pytest.fail("photos were looked at again"))
            assert_ran(call(main, *run))
        arrays = {path.name for path in (small / "r").glob("*.npy")}
        assert len(arrays) == 4
        assert files_of(run_folder(small / "r")).keys() == {
            "config.json", "detections.csv", "metrics.json", "predictions.jsonl", "summary.json", *arrays
        }  # fmt: skip

    def test_after_a_stop_while_a_photo_is_drawn(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        show = detecting._show

        def stop(photo: Photo, *rest: object) -> None:
            if photo.path.name == "1.png":
                raise KeyboardInterrupt
            show(photo, *rest)

        run = (*common(small, models), "--save_folder", small / "r", "--show", "--limit", 3)
        with monkeypatch.context() as stopped:
            stopped.setattr(detecting, "_show", stop)
            assert_ran(call(main, *run), 130)
        assert_ran(call(main, *run))
        drawn = run_folder(small / "r") / "overlays/YoLLaVA/test/lamp"
        assert sorted(path.name for path in drawn.iterdir()) == [f"{n}.png.png" for n in (0, 1, 2)]

    @pytest.mark.parametrize("content", ["", "{}", "[]"])
    def test_a_damaged_config_keeps_no_run_from_beginning(
        self, small: Path, models: Path, call: Callable, content: str
    ) -> None:
        folder = detect(call, small, models, "--limit", 2)
        (folder / "summary.json").unlink()  # as if it had been interrupted
        (folder / "config.json").write_text(content)
        results = folder.parents[1]
        result = call(main, *common(small, models), "--limit", 2, "--save_folder", results)
        assert_ran(result)
        assert f"{folder / 'config.json'}: not going on with that run" in result.stderr
        assert len(list((results / "runs").iterdir())) == 2

    def test_a_folder_that_is_removed_meanwhile(
        self, small: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = detecting._record

        def removing(matches: Matches, *rest: object) -> dict:
            if matches.photo.path.name == "1.png":
                shutil.rmtree(run_folder(small / "r"))
            return record(matches, *rest)

        monkeypatch.setattr(detecting, "_record", removing)
        result = call(main, *common(small, models), "--save_folder", small / "r")
        assert_refused(result, "was removed while the run went on")

    def test_a_long_file_name_is_drawn(self, small: Path, models: Path, call: Callable) -> None:
        photo = small / f"data/YoLLaVA/test/{CONCEPTS[0]}/0.png"
        photo.rename(photo.with_name("n" * 246 + ".png"))
        folder = detect(call, small, models, "--show")
        assert len(list((folder / "overlays").rglob("*.png"))) == 6

    def test_another_configuration_does_not_go_on(self, small: Path, models: Path, call: Callable) -> None:
        folder = detect(call, small, models, "--limit", 2)
        (folder / "summary.json").unlink()  # as if it had been interrupted
        results = folder.parents[1]
        run = (*common(small, models), "--limit", 2, "--save_folder", results)
        assert_ran(call(main, *run, "--detect_thresh", 0.6))
        assert len(list((results / "runs").iterdir())) == 2
        other = call(main, *run, "--dtype", "bfloat16")
        assert_ran(other)
        assert "the views were made with --dtype float32" in other.stderr
        assert len(list((results / "runs").iterdir())) == 3

    def test_photos_turned_otherwise_are_another_run(self, small: Path, models: Path, call: Callable) -> None:
        folder = detect(call, small, models, "--limit", 2)
        (folder / "summary.json").unlink()  # as if it had been interrupted
        results = folder.parents[1]
        run = (*common(small, models), "--limit", 2, "--save_folder", results)
        assert_ran(call(main, *run, "--exif", "True"))
        assert len(list((results / "runs").iterdir())) == 2
        assert_ran(call(main, *run, "--exif", "False"))
        assert len(list((results / "runs").iterdir())) == 2  # the interrupted one went on


CHECKPOINTS = ROOT / "pekit/sample/checkpoints"


class TestSample:
    """The whole way on the drawn miniature that ships with the project."""

    @pytest.mark.parametrize(
        ("dataset", "options"),
        [
            ("yollava", ()),
            ("myvlm", ("--variation", "augment")),
            ("this-is-my", ("--grounding_sam",)),
            ("this-is-my", ("--multi_concept",)),
        ],
    )
    def test_every_layout(
        self, sample: Path, models: Path, tmp_path: Path, call: Callable, dataset: str, options: tuple
    ) -> None:
        (tmp_path / "data").symlink_to(sample)
        run = (*common(tmp_path, models, dataset), *options, "--n_training_views", 1)
        assert_ran(call(extraction.main, *run, *(("--n_augment", 1) if dataset == "myvlm" else ())))
        splits = SPLITS if dataset == "this-is-my" and "--multi_concept" not in options else (None,)
        for split in splits:
            own = ("--test_split", split) if split else ()
            assert_ran(call(main, *run, *own, "--limit", 2, "--save_folder", tmp_path / "results"))
        assert len(list((tmp_path / "results/runs").iterdir())) == len(splits)
        assert len(list((tmp_path / "results").rglob("*.npy"))) == 4 * len(splits)

    @pytest.mark.skipif(
        not all((CHECKPOINTS / role / "model.safetensors").exists() for role in ("grounding", "features")),
        reason="the trained sample checkpoints are not in this checkout",
    )
    def test_trained_models_recognise_drawn_concepts(self, sample: Path, tmp_path: Path, call: Callable) -> None:
        run = ("--dataset", "yollava", "--data_folder", sample, "--features_folder", tmp_path / "features")
        run = (*run, "--models", "sample", "--n_training_views", 2, "--num_workers", 0)
        assert_ran(call(extraction.main, *run))
        assert_ran(call(main, *run, "--save_folder", tmp_path / "results"))
        means = json.loads((run_folder(tmp_path / "results") / "metrics.json").read_text())["means"]
        assert means["recall"]["mean"] > 0.7  # an eighth of the photos show a concept: chance is far below
        assert means["weighted_accuracy"]["mean"] > 0.8
