"""extraction.py on miniatures: its files against the method done slowly, and what must not change them."""

from __future__ import annotations

import json
import os
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
    TINY,
    assert_ran,
    assert_refused,
    files_of,
    run_script,
    script_environment,
    write_multi,
    write_photos,
    write_this_is_my,
    write_yollava,
)
from PIL import Image

from pekit import extracting, pipeline
from pekit.cli.extraction import main
from pekit.pictures import augment
from pekit.records import UserError, View
from pekit.regions import Segmenter
from pekit.sample.models.features import WIDTH
from pekit.views import read_manifest

PROMPTS = {"pig-cup": "pig cup.", "lamp": "lamp.", "teddy-plush": "teddy plush."}


def options(folder: Path, models: Path, dataset: str = "yollava") -> tuple:
    return (
        *("--dataset", dataset, "--data_folder", folder / "data", "--features_folder", folder / "features"),
        *("--models", models, *TINY),
    )


def stored(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def descriptor_of(content: dict) -> np.ndarray:
    (values,) = (v for v in content.values() if torch.is_tensor(v) and v.dtype == torch.float32)
    return values.numpy()


class TestAgainstTheMethodDoneSlowly:
    def test_box_masks(self, box_run: Path, models: Path) -> None:
        reference = plain.Models(models)
        folder = box_run / "features/yollava/extracted_features"
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
        assert names == {f"{key}/{n}_0.pt" for key in CONCEPTS for n in range(3)}  # the first three of four
        left = 0
        for key in CONCEPTS:
            for n in range(3):
                picture = plain.squash(box_run / f"data/YoLLaVA/train/{key}/{n}.png", 518)
                boxes, scores = reference.boxes(picture, PROMPTS[key])
                box = boxes[scores.argmax()]
                left += box.min() < 0 or box.max() > 518
                expected = plain.patches(plain.box_mask(box, 518), reference.grid(picture), 14)
                content = stored(folder / key / f"{n}_0.pt")
                assert content["dino_obj_features"].shape == expected.shape
                np.testing.assert_allclose(content["dino_obj_features"].float().numpy(), expected, atol=3e-3)
                if len(expected):
                    np.testing.assert_allclose(descriptor_of(content), expected.mean(0), atol=2e-5)
                assert content["class_label"] == key.replace("-", " ")
                assert content["img_path"] == f"YoLLaVA/train/{key}/{n}.png"

    def test_sam_masks_and_augmentations(self, sam_run: Path, models: Path) -> None:
        reference = plain.Models(models)
        folder = sam_run / "features/yollava/extracted_features/gsam"
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
        assert names == {f"{key}/{n}_{a}.pt" for key in CONCEPTS for n in range(2) for a in range(3)}
        seen = 0
        for key in CONCEPTS:
            for number in range(3):
                name = f"YoLLaVA/train/{key}/1.png"
                image = Image.open(sam_run / "data" / name).convert("RGB")
                if number:
                    image = augment(image, 42, name, number)
                picture = image.resize((224, 224), Image.Resampling.BILINEAR)
                boxes, scores = reference.boxes(picture, PROMPTS[key])
                masks, ious = reference.three_masks(picture, boxes[scores.argmax()])
                expected = plain.patches(masks[ious.argmax()], reference.grid(picture), 14)
                content = stored(folder / key / f"1_{number}.pt")
                assert content["dino_obj_features"].shape == expected.shape
                np.testing.assert_allclose(content["dino_obj_features"].float().numpy(), expected, atol=3e-3)
                if len(expected):
                    seen += 1
                    np.testing.assert_allclose(descriptor_of(content), expected.mean(0), atol=2e-5)
        assert seen > 4


def own_views(run: Path, folder: Path) -> None:
    """A copy of a run's views, for a test to change, and its data."""
    shutil.copytree(run / "features", folder / "features")
    (folder / "data").symlink_to(run / "data")


def test_views_of_concepts_that_are_gone_are_named(models: Path, tmp_path: Path, call: Callable) -> None:
    write_yollava(tmp_path / "data", CONCEPTS, train=1, test=0)
    run = options(tmp_path, models)
    first = call(main, *run)
    assert_ran(first)
    assert "without reference photos" not in first.stderr
    train = tmp_path / "data/YoLLaVA/train"
    (train / CONCEPTS[1]).rename(train / "renamed-mug")
    result = call(main, *run)
    assert_ran(result)
    assert "1 view made" in result.stdout
    assert f"views of 1 concept without reference photos in {tmp_path / 'features'}" in result.stderr
    assert f"such as {CONCEPTS[1]}: vqa.py" in result.stderr
    views = tmp_path / "features/yollava/extracted_features"
    assert {folder.name for folder in views.iterdir() if folder.is_dir()} == {*CONCEPTS, "renamed-mug"}
    again = call(main, *run, "--dino_img_size", 280, "--overwrite")
    assert_ran(again)
    assert "without reference photos" not in again.stderr  # theirs are gone with the others


class TestManifest:
    def test_a_trial_of_other_settings_is_refused(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        own_views(box_run, tmp_path)
        before = files_of(tmp_path / "features")
        run = (*options(tmp_path, models), "--overwrite", "--limit", 1)
        assert_refused(call(main, *run), "size 518, not 224", "--limit")
        assert files_of(tmp_path / "features") == before
        assert_ran(call(main, *run, "--dino_img_size", 518))
        assert len(files_of(tmp_path / "features")) == len(before)

    def test_what_the_views_were_made_with(self, box_run: Path, sam_run: Path) -> None:
        box = json.loads((box_run / "features/yollava/extracted_features/manifest.json").read_text())
        assert box["mask_kind"] == "box" and box["size"] == 518 and box["seed"] == 42
        assert set(box["models"]) == {"grounding", "features"}
        assert {"torch", "transformers", "numpy", "pillow"} <= set(box["versions"])
        sam = json.loads((sam_run / "features/yollava/extracted_features/gsam/manifest.json").read_text())
        assert sam["mask_kind"] == "sam" and set(sam["models"]) == {"grounding", "features", "masks"}

    def test_views_of_other_models_are_not_mixed(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        from pekit.sample.models import write_model

        write_model("features", tmp_path / "other-features", seed=99)
        shutil.copytree(box_run / "features", tmp_path / "features")
        shutil.copytree(box_run / "data", tmp_path / "data")
        before = files_of(tmp_path / "features")
        common = (
            "--dataset",
            "yollava",
            "--data_folder",
            tmp_path / "data",
            "--features_folder",
            tmp_path / "features",
        )
        common = (*common, "--models", models, "--num_workers", 0, "--n_training_views", 4)
        result = call(main, *common, "--dino_model", tmp_path / "other-features")
        assert_refused(result, "features", "other-features", str(models / "features"), "--overwrite")
        assert_refused(call(main, *common, "--dino_img_size", 224), "518", "224")
        assert files_of(tmp_path / "features") == before
        copied = tmp_path / "moved-models"
        shutil.copytree(models, copied)
        common = (*common, "--limit", 4)  # one photo of the first concept is new
        result = call(main, *common, "--models", copied)  # the same models in another place
        assert_ran(result)
        assert "1 view made, 3 kept" in result.stdout

    def test_overwrite_replaces_views_of_other_models(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        shutil.copytree(box_run / "features", tmp_path / "features")
        shutil.copytree(box_run / "data", tmp_path / "data")
        result = call(main, *options(tmp_path, models), "--n_training_views", 1, "--overwrite")
        assert_ran(result)
        folder = tmp_path / "features/yollava/extracted_features"
        assert f"removing the views of --dino_img_size 518, not 224 from {folder}" in result.stderr
        assert sorted(path.name for path in folder.glob("*/*.pt")) == ["0_0.pt"] * 3  # none of the old ones is left
        assert json.loads((folder / "manifest.json").read_text())["size"] == 224

    def test_a_limit_does_not_cost_the_views_of_other_settings(self, box_run: Path) -> None:
        folder = box_run / "features/yollava/extracted_features"
        manifest = read_manifest(folder)
        assert manifest is not None
        settings = extracting.ExtractionSettings(folder, "train", 0, False, 0, 42, False, overwrite=True, limit=1)
        with pytest.raises(UserError, match="size 518, not 224: --overwrite would remove them all and --limit"):
            extracting._look_through(replace(manifest, size=224), [], settings)
        assert not extracting._look_through(manifest, [], settings).removed  # of these, one may be
        whole = extracting._look_through(replace(manifest, size=224), [], replace(settings, limit=None))
        assert whole.removed == set(folder.glob("*/*.pt"))

    def test_overwrite_removes_nothing_before_the_models_are_ready(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        own_views(box_run, tmp_path)
        before = files_of(tmp_path / "features")
        result = call(main, *options(tmp_path, models), "--overwrite", "--dino_img_size", 225)
        assert_refused(result, "--dino_img_size", "225")
        assert "removing" not in result.stderr
        assert_refused(call(main, *options(tmp_path, models), "--overwrite", "--device", "cuda:77"), "cuda:77")
        assert files_of(tmp_path / "features") == before

    def test_a_manifest_without_views_keeps_nothing_out(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        own_views(box_run, tmp_path)
        folder = tmp_path / "features/yollava/extracted_features"
        for view in folder.glob("*/*.pt"):
            view.unlink()
        assert_ran(call(main, *options(tmp_path, models), "--n_training_views", 1))
        assert json.loads((folder / "manifest.json").read_text())["size"] == 224

    def test_overwriting_other_views_that_is_stopped_leaves_none_of_them(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_views(box_run, tmp_path)
        run = (*options(tmp_path, models), "--n_training_views", 1)  # at another size

        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as stopped:
            stopped.setattr("pekit.extracting.extract_views", stop)
            assert "leave out --overwrite to go on" in call(main, *run, "--overwrite").stderr
        assert "3 views made, 0 kept" in call(main, *run).stdout


class TestTwoRunsAtOnce:
    """Both have found the folder empty before either has begun to write."""

    @staticmethod
    def beside_another(other: tuple, main_options: tuple, call: Callable, monkeypatch: pytest.MonkeyPatch) -> tuple:
        """Run extraction.py, and the other one from its beginning to its end while the first loads its models."""
        load, results = extracting.Recognizer, []

        def slowly(*args: object, **more: object) -> object:
            monkeypatch.setattr(extracting, "Recognizer", load)
            results.append(call(main, *other))
            return load(*args, **more)

        monkeypatch.setattr(extracting, "Recognizer", slowly)
        return call(main, *main_options), *results

    def test_with_other_settings_the_later_one_is_refused(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=2, test=1)
        run = options(tmp_path, models)
        later, other = self.beside_another((*run, "--dino_img_size", 112), run, call, monkeypatch)
        assert_ran(other)
        before = files_of(tmp_path / "features")
        assert_refused(later, "another run", "size 112, not 224", "--features_folder")
        assert files_of(tmp_path / "features") == before

    def test_with_the_same_settings_both_go_on(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=2, test=1)
        run = options(tmp_path, models)
        for result in self.beside_another(run, run, call, monkeypatch):
            assert_ran(result)

    @staticmethod
    def once_a_view_is_made(work: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        """Do something between the first and the second view of a run."""
        save = pipeline.save_view

        def save_and_work(path: Path, view: View) -> None:
            monkeypatch.setattr(pipeline, "save_view", save)
            save(path, view)
            work()

        monkeypatch.setattr(pipeline, "save_view", save_and_work)

    def test_one_whose_views_another_replaces_stops(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=3, test=1)
        run = options(tmp_path, models)
        other, found = (*run, "--dino_img_size", 112, "--overwrite", "--n_training_views", 2), []
        self.once_a_view_is_made(lambda: found.append(call(main, *other)), monkeypatch)
        assert_refused(call(main, *run), "another run", "size 112, not 224", "--features_folder")
        (replaced,) = found
        assert "2 views made" in replaced.stdout
        folder = tmp_path / "features/yollava/extracted_features"
        assert sorted(files_of(folder)) == ["manifest.json", "pig-cup/0_0.pt", "pig-cup/1_0.pt"]
        assert json.loads((folder / "manifest.json").read_text())["size"] == 112

    def test_the_manifest_tells_of_augmentations_whoever_wrote_it_last(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=2, test=1)
        run = options(tmp_path, models)
        augmented = (*run, "--variation", "augment", "--n_augment", 2, "--seed", 7)
        results = self.beside_another(run, augmented, call, monkeypatch)
        for result in results:
            assert_ran(result)
        manifest = json.loads((tmp_path / "features/yollava/extracted_features/manifest.json").read_text())
        assert (manifest["n_augment"], manifest["seed"]) == (2, 7)

    def test_a_folder_that_is_removed_meanwhile_has_a_manifest_again(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=3, test=1)
        run = options(tmp_path, models)
        self.once_a_view_is_made(lambda: shutil.rmtree(tmp_path / "features"), monkeypatch)
        assert_ran(call(main, *run))
        assert "1 view made, 2 kept" in call(main, *run).stdout


def test_only_train_holds_reference_photos_of_this_is_my(models: Path, tmp_path: Path, call: Callable) -> None:
    write_this_is_my(tmp_path / "data", ["Alexs hat-hat"])
    refused = call(main, *options(tmp_path, models, "this-is-my"), "--split", "test")
    assert_refused(refused, "--split test of this-is-my holds no reference photos: leave it out")


def test_a_long_file_name(models: Path, tmp_path: Path, call: Callable) -> None:
    write_yollava(tmp_path / "data", CONCEPTS[:1], train=1, test=1)
    stem = "n" * 246
    write_photos(tmp_path / f"data/YoLLaVA/train/{CONCEPTS[0]}", [f"{stem}.png"])
    assert_ran(call(main, *options(tmp_path, models)))
    assert (tmp_path / f"features/yollava/extracted_features/{CONCEPTS[0]}/{stem}_0.pt").is_file()


def test_an_exif_orientation_that_is_ignored_is_told(models: Path, tmp_path: Path, call: Callable) -> None:
    write_yollava(tmp_path / "data", CONCEPTS[:1], train=2, test=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
    Image.open(photo).save(photo, exif=exif)
    said = "1 of the first 2 photos have an EXIF orientation"
    assert said in call(main, *options(tmp_path, models)).stderr
    assert said not in call(main, *options(tmp_path, models), "--exif", "True", "--overwrite").stderr


class TestTheSameFilesHoweverTheyAreMade:
    def test_again_with_other_workers_and_order(
        self, sam_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        (tmp_path / "data").symlink_to(sam_run / "data")
        result = call(
            main,
            *(*options(tmp_path, models), "--grounding_sam", "True", "--variation", "augment", "--n_augment", 2),
            *("--n_training_views", 2, "--batch_size", 3),
        )
        assert_ran(result)
        made, expected = (files_of(folder / "features") for folder in (tmp_path, sam_run))
        assert made.keys() == expected.keys()
        for name in made:
            if name.endswith(".pt"):  # another order puts other pictures into a batch: equal but for the last bits
                one, two = (stored(folder / "features" / name) for folder in (tmp_path, sam_run))
                assert one["dino_obj_features"].shape == two["dino_obj_features"].shape
                np.testing.assert_allclose(descriptor_of(one), descriptor_of(two), atol=1e-5)

    def test_twice_the_same_command_gives_the_same_bytes(
        self, box_run: Path, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        common = ("--dataset", "yollava", "--data_folder", box_run / "data", "--models", models, "--num_workers", 0)
        common = (*common, "--n_training_views", 3)
        assert_ran(call(main, *common, "--features_folder", tmp_path / "features"))
        assert files_of(tmp_path / "features") == files_of(box_run / "features")

    def test_a_normal_run_is_the_first_part_of_an_augmented_one(
        self, models: Path, tmp_path: Path, call: Callable
    ) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:2], train=2, test=1)
        folder = tmp_path / "features/yollava/extracted_features"
        result = call(main, *options(tmp_path, models))
        assert_ran(result)
        assert "4 views made, 0 kept, of 2 concepts, in" in result.stdout
        first = files_of(folder)
        again = call(main, *options(tmp_path, models))
        assert "0 views made, 4 kept" in again.stdout
        more = call(main, *options(tmp_path, models), "--variation", "augment", "--n_augment", 2)
        assert "8 views made, 4 kept" in more.stdout
        both = files_of(folder)
        assert {name: both[name] for name in first if name.endswith(".pt")} == {
            name: content for name, content in first.items() if name.endswith(".pt")
        }
        shutil.rmtree(tmp_path / "features")
        assert_ran(call(main, *options(tmp_path, models), "--variation", "augment", "--n_augment", 2))
        assert files_of(folder) == both
        assert_refused(
            call(main, *options(tmp_path, models), "--variation", "augment", "--n_augment", 3, "--seed", 7), "42", "7"
        )

    def test_going_on_after_a_kill(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_yollava(tmp_path / "data", CONCEPTS[:2], train=3, test=1)
        run = (*options(tmp_path, models), "--variation", "augment", "--n_augment", 3)
        whole = tmp_path / "whole"
        assert_ran(call(main, *run, "--features_folder", whole))

        command = [sys.executable, str(ROOT / "extraction.py"), *map(str, run)]
        folder = tmp_path / "features/yollava/extracted_features"
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=script_environment()) as process:
            end = time.monotonic() + 200
            while len(list(folder.glob("*/*.pt"))) < 4 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        finished = list(folder.glob("*/*.pt"))
        assert 4 <= len(finished) < 24
        for path in finished:
            stored(path)  # whole, every one
        result = call(main, *run)
        assert_ran(result)
        assert f"{24 - len(finished)} views made, {len(finished)} kept" in result.stdout
        assert files_of(tmp_path / "features") == files_of(whole)


class TestReferencePhotosThatChange:
    """What is stored follows the photos, however they were put there."""

    @pytest.fixture
    def folder(self, models: Path, tmp_path: Path, call: Callable) -> Path:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=2, test=1)
        assert_ran(call(main, *options(tmp_path, models), "--variation", "augment", "--n_augment", 2))
        return tmp_path

    def test_one_replaced_by_an_older_file(self, folder: Path, models: Path, call: Callable) -> None:
        views = folder / f"features/yollava/extracted_features/{CONCEPTS[0]}"
        before = files_of(views)
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        write_photos(photo.parent, [photo.name], seed=901)
        os.utime(photo, (1e9, 1e9))
        result = call(main, *options(folder, models))  # its augmentations, too, are of the old photo
        assert_ran(result)
        said = "1 photo changed after the views were made, such as YoLLaVA/train/pig-cup/1.png: making the views anew"
        assert said in result.stderr and "could not be read" not in result.stderr
        assert "removing 2 outdated augmented views: --variation augment makes such again" in result.stderr
        assert "1 view made, 1 kept" in result.stdout
        after = files_of(views)
        assert sorted(after) == ["0_0.pt", "0_1.pt", "0_2.pt", "1_0.pt"]
        assert after["1_0.pt"] != before["1_0.pt"]
        os.utime(photo)
        again = call(main, *options(folder, models), "--variation", "augment", "--n_augment", 2)
        assert "anew" not in again.stderr and "2 views made, 4 kept" in again.stdout

    def test_one_replaced_while_its_view_is_made(
        self, folder: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        save = pipeline.save_view

        def replaced(path: Path, view: View) -> None:
            if path.name == "1_0.pt":
                write_photos(photo.parent, [photo.name], seed=901)
            save(path, view)

        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "save_view", replaced)
            assert_ran(call(main, *options(folder, models), "--overwrite"))
        again = call(main, *options(folder, models))
        assert "1 photo changed after the views were made" in again.stderr and "1 view made, 1 kept" in again.stdout

    def test_one_that_cannot_be_read_keeps_its_views(self, folder: Path, models: Path, call: Callable) -> None:
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        photo.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
        before = files_of(folder / "features")
        for option in ((), ("--overwrite",)):
            result = call(main, *options(folder, models), *option)
            assert_ran(result, 1)
            assert "git lfs pull" in result.stdout
            assert files_of(folder / "features") == before
        assert_refused(call(main, *options(folder, models), "--strict"), "git lfs pull")
        assert files_of(folder / "features") == before

    def test_one_whose_drive_is_away_keeps_its_views(self, folder: Path, models: Path, call: Callable) -> None:
        before = files_of(folder / "features")
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        photo.unlink()
        photo.symlink_to("/nowhere/1.png")
        result = call(main, *options(folder, models), "--variation", "augment", "--n_augment", 2)
        assert "changed" not in result.stderr and "0 views made, 6 kept" in result.stdout
        assert files_of(folder / "features") == before

    def test_each_view_is_looked_at(self, folder: Path, models: Path, call: Callable) -> None:
        run = (*options(folder, models), "--variation", "augment", "--n_augment", 2)
        views = folder / f"features/yollava/extracted_features/{CONCEPTS[0]}"
        old = {number: (views / f"1_{number}.pt").read_bytes() for number in range(3)}
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        write_photos(photo.parent, [photo.name], seed=901)
        assert "3 views made, 3 kept" in call(main, *run).stdout
        new = {number: (views / f"1_{number}.pt").read_bytes() for number in range(3)}
        (views / "1_2.pt").write_bytes(old[2])  # a run that was stopped before the last
        assert "1 view made, 5 kept" in call(main, *run).stdout
        assert {number: (views / f"1_{number}.pt").read_bytes() for number in range(3)} == new

    def test_augmented_views_outlive_an_overwritten_normal_run(
        self, folder: Path, models: Path, call: Callable
    ) -> None:
        assert "2 views made" in call(main, *options(folder, models), "--overwrite").stdout
        again = call(main, *options(folder, models), "--variation", "augment", "--n_augment", 2)
        assert "0 views made, 6 kept" in again.stdout
        for view in (folder / f"features/yollava/extracted_features/{CONCEPTS[0]}").glob("*_[12].pt"):
            view.unlink()  # what is not there keeps nothing out
        run = (*options(folder, models), "--variation", "augment", "--n_augment", 1, "--seed", 7)
        assert "2 views made, 2 kept" in call(main, *run).stdout
        manifest = json.loads((folder / "features/yollava/extracted_features/manifest.json").read_text())
        assert (manifest["n_augment"], manifest["seed"]) == (1, 7)

    def test_a_damaged_manifest(self, folder: Path, models: Path, call: Callable) -> None:
        manifest = folder / "features/yollava/extracted_features/manifest.json"
        manifest.write_text('{"models": {}, "augmented": true}')
        assert_refused(call(main, *options(folder, models)), "manifest.json", "--overwrite")
        assert_ran(call(main, *options(folder, models), "--overwrite"))
        assert json.loads(manifest.read_text())["n_augment"] == 0

    def test_nothing_is_lost_to_a_wrong_option(self, folder: Path, models: Path, call: Callable) -> None:
        photo = folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png"
        write_photos(photo.parent, [photo.name], seed=901)
        before = files_of(folder / "features")
        assert_refused(call(main, *options(folder, models), "--device", "cuda:77"), "cuda:77")
        assert files_of(folder / "features") == before

    def test_a_damaged_view_is_made_anew(self, folder: Path, models: Path, call: Callable) -> None:
        view = folder / f"features/yollava/extracted_features/{CONCEPTS[0]}/0_0.pt"
        whole = view.read_bytes()
        view.write_bytes(whole[:100])
        result = call(main, *options(folder, models), "--variation", "augment", "--n_augment", 2)
        assert_ran(result)
        assert f"1 view could not be read, such as {view}: each is made anew" in result.stderr
        assert "changed" not in result.stderr and "1 view made, 5 kept" in result.stdout
        assert stored(view)["img_path"] == "YoLLaVA/train/pig-cup/0.png"

    def test_one_that_is_removed(self, folder: Path, models: Path, call: Callable) -> None:
        views = folder / f"features/yollava/extracted_features/{CONCEPTS[0]}"
        (folder / f"data/YoLLaVA/train/{CONCEPTS[0]}/1.png").unlink()
        result = call(main, *options(folder, models))
        assert_ran(result)
        assert "3 views of photos that are no longer there" in result.stderr and "1_0.pt" in result.stderr
        assert len(list(views.iterdir())) == 6
        assert_ran(call(main, *options(folder, models), "--overwrite"))
        assert sorted(path.name for path in views.iterdir()) == ["0_0.pt", "0_1.pt", "0_2.pt"]

    def test_augmenting_where_a_system_library_is_missing(
        self, folder: Path, models: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = files_of(folder / "features")

        def missing(*args: object) -> None:
            raise ImportError("libGL.so.1: cannot open shared object file")

        monkeypatch.delitem(sys.modules, "albumentations", raising=False)
        monkeypatch.setattr(sys, "meta_path", [type("Finder", (), {"find_spec": missing})(), *sys.meta_path])
        run = (*options(folder, models), "--variation", "augment", "--overwrite")
        assert_refused(call(main, *run), "albumentations", "libGL.so.1", "opencv-python-headless")
        assert files_of(folder / "features") == before

    def test_fewer_augmentations(self, folder: Path, models: Path, call: Callable) -> None:
        run = (*options(folder, models), "--variation", "augment", "--n_augment", 1)
        views = folder / f"features/yollava/extracted_features/{CONCEPTS[0]}"
        assert_refused(call(main, *run), "2 augmentations of a photo, not 1", "--overwrite")
        assert len(list(views.iterdir())) == 6
        assert_ran(call(main, *run, "--overwrite"))
        assert sorted(path.name for path in views.iterdir()) == ["0_0.pt", "0_1.pt", "1_0.pt", "1_1.pt"]
        assert "0 views made, 4 kept" in call(main, *run).stdout

    def test_the_least_area_of_masks_is_nothing_to_boxes(self, folder: Path, models: Path, call: Callable) -> None:
        assert "0 views made, 2 kept" in call(main, *options(folder, models), "--min_mask_area", 5).stdout

    def test_those_of_another_number_format(self, folder: Path, models: Path, call: Callable) -> None:
        run = options(folder, models)
        before = files_of(folder / "features")
        assert_refused(call(main, *run, "--dtype", "bfloat16"), "dtype float32, not bfloat16", "--overwrite")
        assert files_of(folder / "features") == before

    def test_those_of_another_split(self, folder: Path, models: Path, call: Callable) -> None:
        before = files_of(folder / "features")
        assert_refused(call(main, *options(folder, models), "--split", "test"), "split train, not test")
        assert files_of(folder / "features") == before

    def test_views_that_no_manifest_tells_about(self, folder: Path, models: Path, call: Callable) -> None:
        views = folder / "features/yollava/extracted_features"
        (views / "manifest.json").unlink()
        before = files_of(views)
        assert_refused(call(main, *options(folder, models)), "no manifest.json", "--overwrite")
        assert files_of(views) == before
        assert_ran(call(main, *options(folder, models), "--overwrite"))
        assert sorted(files_of(views)) == ["manifest.json", "pig-cup/0_0.pt", "pig-cup/1_0.pt"]


class TestPhotosThatCannotBeRead:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_yollava(tmp_path / "data", CONCEPTS[:2], train=2, test=1)
        (tmp_path / "data/YoLLaVA/train/lamp/1.png").write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
        )
        return tmp_path

    def test_a_link_that_leads_nowhere_is_one(self, folder: Path, models: Path, call: Callable) -> None:
        link = folder / "data/YoLLaVA/train/pig-cup/0.png"
        link.unlink()
        link.symlink_to("/nowhere/0.png")
        result = call(main, *options(folder, models))
        assert_ran(result, 1)
        assert "pig-cup/0.png is not there" in result.stdout and "2 of 4 photos" in result.stdout
        assert_ran(call(main, *options(folder, models)), 1)

    def test_the_others_are_finished(self, folder: Path, models: Path, call: Callable) -> None:
        result = call(main, *options(folder, models), "--variation", "augment", "--n_augment", 1)
        assert_ran(result, 1)
        made = sorted(path.relative_to(folder / "features").as_posix() for path in folder.glob("features/**/*.pt"))
        assert [name.split("extracted_features/")[1] for name in made] == [
            "lamp/0_0.pt", "lamp/0_1.pt", "pig-cup/0_0.pt", "pig-cup/0_1.pt", "pig-cup/1_0.pt", "pig-cup/1_1.pt"
        ]  # fmt: skip
        assert "lamp/1.png" in result.stdout and "git lfs pull" in result.stdout
        assert "1 of 4 photos" in result.stdout and "6 views made" in result.stdout

    def test_strict_stops(self, folder: Path, models: Path, call: Callable) -> None:
        assert_refused(call(main, *options(folder, models), "--strict"), "lamp/1.png", "--strict")


class TestOtherLayouts:
    def test_this_is_my(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_this_is_my(tmp_path / "data", ["Alexs hat-hat", "Nikkis car-car"], train=1, test=0)
        result = call(main, *options(tmp_path, models, "this-is-my"), "--grounding_sam", "False")
        assert_ran(result)
        folder = tmp_path / "features/this-is-my/extracted_features"
        assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")) == [
            "Alexs hat-hat/v0_0.pt",
            "Nikkis car-car/v0_0.pt",
        ]
        content = stored(folder / "Alexs hat-hat/v0_0.pt")
        assert content["class_label"] == "Alexs hat hat"
        assert content["img_path"] == "This-is-My-Img/Single-concept/train/Alexs hat-hat/v0.png"

    def test_multi_concept_with_sam(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_multi(tmp_path / "data", ["Alex-woman"], [], train=1)
        assert_ran(call(main, *options(tmp_path, models, "this-is-my"), "--multi_concept", "--grounding_sam"))
        assert (tmp_path / "features/this-is-my/multi_concept/extracted_features/gsam/Alex-woman/v0_0.pt").is_file()

    def test_masks_smaller_than_asked_for_are_empty(self, models: Path, tmp_path: Path, call: Callable) -> None:
        write_photos(tmp_path / "data/myvlm/data/red_chicken", ["red_chicken_1.jpg"])
        run = (*options(tmp_path, models, "myvlm"), "--grounding_sam", "--min_mask_area", 224 * 224 + 1)
        result = call(main, *run)
        assert_ran(result)
        content = stored(tmp_path / "features/myvlm/extracted_features/gsam/red_chicken/red_chicken_1_0.pt")
        assert content["dino_obj_features"].shape == (0, WIDTH)
        assert "red_chicken_1" in result.stderr and "no patch" in result.stderr

    def test_a_mask_of_just_the_area_asked_for_is_kept(
        self, models: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        masks = np.zeros((2, 224, 224), dtype=bool)
        masks[:, :40, :50] = True  # 2000 px
        masks[1, 39, 49] = False  # not a pixel that a patch is read from
        cut = iter(masks)
        monkeypatch.setattr(Segmenter, "cut", lambda self, pixels, boxes: np.stack([next(cut) for _ in boxes]))
        write_photos(tmp_path / "data/myvlm/data/red_chicken", ["1.jpg", "2.jpg"])
        assert_ran(call(main, *options(tmp_path, models, "myvlm"), "--grounding_sam", "--min_mask_area", 2000))
        folder = tmp_path / "features/myvlm/extracted_features/gsam/red_chicken"
        # rows 0, 14, 28 and columns 0, 14, 28, 42 of the one; nothing of the other
        assert [len(stored(folder / f"{n}_0.pt")["dino_obj_features"]) for n in (1, 2)] == [12, 0]


class TestModelsThatCannotBeUsed:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_yollava(tmp_path / "data", CONCEPTS[:1], train=1, test=1)
        return tmp_path

    def test_wrong_folders_and_architectures(self, folder: Path, models: Path, call: Callable) -> None:
        run = options(folder, models)
        (folder / "empty").mkdir()
        assert_refused(call(main, *run, "--dino_model", folder / "nowhere"), "--dino_model", "nowhere")
        assert_refused(call(main, *run, "--grounding_model", folder / "empty"), "--grounding_model", "config.json")
        assert_refused(call(main, *run, "--dino_model", models / "masks"), "--dino_model", "sam", "dinov2")
        assert_refused(call(main, *run, "--grounding_sam", "--sam_model", models / "features"), "--sam_model", "dinov2")
        assert_refused(call(main, *run, "--models", folder / "empty"), "features")
        assert not (folder / "features").exists()

    def test_incomplete_and_damaged_checkpoints(self, folder: Path, models: Path, call: Callable) -> None:
        from safetensors.torch import load_file, save_file

        run = options(folder, models)
        for name in ("none", "part", "torn"):
            shutil.copytree(models / "features", folder / name)
        (folder / "none/model.safetensors").unlink()
        weights = load_file(folder / "part/model.safetensors")
        del weights["layernorm.weight"]
        save_file(weights, folder / "part/model.safetensors", metadata={"format": "pt"})
        torn = folder / "torn/model.safetensors"
        torn.write_bytes(torn.read_bytes()[:5000])
        for name in ("none", "part", "torn"):
            assert_refused(call(main, *run, "--dino_model", folder / name), "--dino_model", name)

    def test_a_folder_with_an_at_sign_in_its_path(self, folder: Path, models: Path, call: Callable) -> None:
        (folder / "me@host").symlink_to(models)
        assert_ran(call(main, *options(folder, models), "--models", folder / "me@host"))
        refused = call(main, *options(folder, models), "--dino_model", folder / "me@nowhere/features")
        assert_refused(refused, "me@nowhere/features: no such folder")

    def test_sam_is_not_read_where_it_is_not_used(self, folder: Path, models: Path, call: Callable) -> None:
        assert_ran(call(main, *options(folder, models), "--sam_model", folder / "nowhere"))

    def test_a_device_that_is_not_here(self, folder: Path, models: Path, call: Callable) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has the device")
        assert_refused(call(main, *options(folder, models), "--device", "cuda"), "--device cuda")
        assert_refused(call(main, *options(folder, models), "--device", "toaster"), "--device toaster")

    def test_a_hub_id_with_offline(self, folder: Path, models: Path, call: Callable) -> None:
        run = (*options(folder, models), "--offline", "--dino_model", "nobody/no-such-model")
        assert_refused(call(main, *run), "--dino_model nobody/no-such-model", "give the folder")

    def test_a_hub_id_without_network(self, folder: Path, models: Path) -> None:
        nobody = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
        run = (*options(folder, models), "--dino_model", "facebook/dinov2-large")
        result = run_script("extraction.py", *run, env=nobody)
        assert_refused(result, "--dino_model facebook/dinov2-large", "network")
        assert "Retrying" not in result.stderr  # half a minute, as the library does it
