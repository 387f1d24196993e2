"""Options: the published ones with their defaults, values refused with a sentence, help at once."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_ran, assert_refused, run_script, script_environment, write_this_is_my, write_yollava

from pekit import cli, hub, pictures
from pekit.cli import detection, extraction, running, vqa
from pekit.records import UserError

SCRIPTS = ("extraction.py", "detection.py")


def parse(module: object, *options: str) -> argparse.Namespace:
    return module.build_parser().parse_args(["--dataset", "yollava", *options])  # type: ignore[attr-defined]


class TestDefaults:
    def test_extraction(self) -> None:
        args = parse(extraction)
        expected = {
            "split": "train",
            "variation": "normal",
            "n_augment": 9,
            "n_training_views": 5,
            "features_folder": Path("features"),
            "data_folder": Path("datasets"),
            "grounding_sam": False,
            "multi_concept": False,
            "device": "auto",
            "seed": 42,
            "dino_img_size": 518,
        }
        assert {name: getattr(args, name) for name in expected} == expected

    def test_detection(self) -> None:
        args = parse(detection)
        assert args.detect_thresh == (0.75,)
        assert (args.split, args.task, args.box_overlap_thresh) == ("test", "detection", 100)
        assert args.save_folder == Path("results")

    def test_models_of_the_paper(self) -> None:
        settings = cli.model_settings(parse(detection))
        assert settings.grounding == "IDEA-Research/grounding-dino-base"
        assert settings.masks == "facebook/sam-vit-base"
        assert settings.features == "facebook/dinov2-large"

    def test_a_single_model_replaces_the_set_s(self, tmp_path: Path) -> None:
        options = ("--models", str(tmp_path), "--dino_model", "my/dino@abc")
        with pytest.raises(UserError, match=f"--models {tmp_path} is .* nor a folder that holds grounding/"):
            cli.model_settings(parse(detection, *options))
        (tmp_path / "grounding").mkdir()
        settings = cli.model_settings(parse(detection, *options))
        assert settings.features == "my/dino@abc"
        asking = parse(vqa, "--models", str(tmp_path))
        assert cli.model_settings(asking, ()).features == str(tmp_path / "features")
        with pytest.raises(UserError, match="--models nowhere is neither"):
            cli.model_settings(parse(vqa, "--models", "nowhere"), ())
        assert settings.grounding == str(tmp_path / "grounding")

    def test_least_areas_of_automatic_masks(self) -> None:
        assert detection.MIN_MASK_AREA == {"myvlm": 2000, "this-is-my": 2000, "yollava": 9000}


@pytest.mark.parametrize("module", [extraction, detection])
@pytest.mark.parametrize("option", ["--grounding_sam", "--multi_concept"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [((), True), (("True",), True), (("False",), False), (("false",), False), (("0",), False), (("1",), True)],
)
def test_flags_mean_what_they_say(module: object, option: str, values: tuple, expected: bool) -> None:
    assert getattr(parse(module, option, *values), option[2:]) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.75", (0.75,)),
        ("0.5,0.6,0.75", (0.5, 0.6, 0.75)),
        ("0.5:0.9:0.05", (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)),
        ("0.7:0.75:0.1", (0.7,)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
    ],
)
def test_thresholds(text: str, expected: tuple) -> None:
    assert parse(detection, "--detect_thresh", text).detect_thresh == expected  # exact: they become file names


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (extraction, ("--batchsize", "4"), "--batchsize"),
        (detection, ("--detect_tresh", "0.5"), "--detect_tresh"),
        (detection, ("--detect", "0.5"), "--detect"),  # no guessing from the beginning of a name
        (detection, ("--detect_thresh", "high"), "high"),
        (detection, ("--detect_thresh", "75"), "75"),
        (detection, ("--detect_thresh", "nan"), "nan"),
        (detection, ("--detect_thresh", "0:inf:1"), "0:inf:1"),
        (detection, ("--detect_thresh", "0:1:1e-999999"), "more than 1000"),  # at once
        (detection, ("--detect_thresh", "-0.5,0.5"), "--detect_thresh=-0.5,0.5"),
        (detection, ("--detect_thresh", "0.9:0.5:0.1"), "0.9:0.5:0.1"),
        (detection, ("--detect_thresh", "0.5:0.9:0"), "0.5:0.9:0"),
        (detection, ("--detect_thresh", "0.5:0.9"), "0.5:0.9"),
        (detection, ("--detect_thresh", ""), "--detect_thresh"),
        (detection, ("--test_split", "Negative"), "Negative (Hard)"),
        (detection, ("--box_overlap_thresh", "much"), "much"),
        (extraction, ("--grounding_sam", "perhaps"), "perhaps"),
        (extraction, ("--n_training_views", "0"), "--n_training_views"),
        (extraction, ("--n_augment", "0"), "--n_augment"),
        (extraction, ("--data_folder", ""), "it is empty"),
        (detection, ("--save_folder", " "), "it is empty"),
        (extraction, ("--batch_size", "0"), "--batch_size"),
        (extraction, ("--device_ids", "a,b"), "a,b"),
        (extraction, ("--device", "cuda:1", "--device_ids", "0,1"), "--device_ids"),
        (detection, ("--device", "cuda:0", "--device_ids", "0"), "--device cuda:0"),
        (extraction, ("--dtype", "int8"), "int8"),
        (extraction, ("--split", "validation"), "validation"),
    ],
)
def test_refused_values(call: Callable, module: object, options: tuple, words: str) -> None:
    assert_refused(call(module.main, "--dataset", "yollava", *options), words)  # type: ignore[attr-defined]


def test_a_mistyped_option_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (("--n_traning_views", "3"), "unrecognized arguments: --n_traning_views 3: did you mean --n_training_views?"),
        (("--detect_tresh=.5",), "unrecognized arguments: --detect_tresh=.5: did you mean --detect_thresh?"),
        (("--zzz",), "unrecognized arguments: --zzz (--help"),
        (("more",), "unrecognized arguments: more (--help"),
        (("--seed", "x"), "argument --seed: "),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse(detection, *options)
        assert stopped.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("detection.py: error: ") and words in line


@pytest.mark.parametrize("module", [extraction, detection])
def test_the_data_set_is_asked_for(call: Callable, module: object) -> None:
    assert_refused(call(module.main), "--dataset")  # type: ignore[attr-defined]
    assert_refused(call(module.main, "--dataset", "coco"), "myvlm")  # type: ignore[attr-defined]


def answered(script: str, *options: object) -> tuple[int, str, float]:
    """Exit code, both outputs and the least CPU seconds of three runs of a script on a machine that may be busy."""
    seconds = []
    for _ in range(3):
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": script_environment()}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            text = process.stdout.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(usage.ru_utime + usage.ru_stime)
    return process.returncode, text, min(seconds)


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (extraction, (), "the same command goes on from there"),
        (extraction, ("--overwrite",), "leave out --overwrite to go on from there"),
        (detection, (), "the same command goes on from there"),
    ],
)
def test_stopped_by_hand(call: Callable, module: object, options: tuple, words: str) -> None:
    def stop() -> int:
        raise KeyboardInterrupt

    result = call(lambda _: running.run_script(stop, parse(module, *options)))
    assert_ran(result, 130)
    assert result.stderr == f"stopped: what is finished is kept; {words}\n"


class TestMemoryThatRunsOut:
    """Wherever it does, one sentence with the mend; a fault of the program keeps its traceback."""

    @staticmethod
    def run(call: Callable, error: Exception) -> subprocess.CompletedProcess[str]:
        def command() -> int:
            raise error

        return call(lambda _: running.run_script(command, argparse.Namespace(offline=False)))

    @staticmethod
    def extract(folder: Path, call: Callable, models: Path) -> subprocess.CompletedProcess[str]:
        write_yollava(folder / "data", ["mug"], 1, 1)
        options = ("--data_folder", folder / "data", "--features_folder", folder / "f", "--models", models)
        return call(extraction.main, "--dataset", "yollava", *options, "--num_workers", 1, "--dino_img_size", 224)

    def test_of_the_gpu(self, call: Callable) -> None:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
        assert hub.is_out_of_memory(error)
        assert_refused(self.run(call, error), "memory is full", "--device", "--dtype bfloat16", "--models small")

    def test_while_a_model_is_moved_to_the_gpu(
        self, tmp_path: Path, call: Callable, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(torch.nn.Module, "to", full)
        assert_refused(self.extract(tmp_path, call, models), "memory is full")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
    def test_a_worker_that_is_killed(
        self, tmp_path: Path, call: Callable, models: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(pictures, "squash", lambda *_: os.kill(os.getpid(), number))
        assert_refused(self.extract(tmp_path, call, models), "--batch_size", "--num_workers 0", "--shm-size")

    @pytest.mark.parametrize(
        "words",
        [
            "unable to allocate shared memory(shm) for file </torch_7_0>: No space left on device (28)",
            "unable to resize file </torch_7_0> to the right size: File too large (27)",
        ],
    )
    def test_too_little_shared_memory(
        self, tmp_path: Path, call: Callable, models: Path, monkeypatch: pytest.MonkeyPatch, words: str
    ) -> None:
        def full(_: object) -> None:
            raise RuntimeError(words)

        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
        assert_refused(self.extract(tmp_path, call, models), "--batch_size", "--num_workers 0", "--shm-size")

    def test_other_errors_keep_their_traceback(self, call: Callable) -> None:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            self.run(call, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("script", [*SCRIPTS, "vqa.py"])
def test_help_answers_at_once(script: str) -> None:
    code, text, seconds = answered(script, "--help")
    assert code == 0 and "--grounding_sam" in text and "--dino_model" in text
    assert ("--vlm_base_url" in text) == (script == "vqa.py")
    assert seconds < 0.5


@pytest.mark.parametrize("script", [*SCRIPTS, "vqa.py"])
def test_mistakes_in_options_are_told_at_once(script: str, tmp_path: Path) -> None:
    stored = tmp_path / "yollava" / "extracted_features" / "mug"
    stored.mkdir(parents=True)
    options = ("--data_folder", tmp_path / "nowhere", "--features_folder", tmp_path)
    code, text, seconds = answered(script, "--dataset", "yollava", *options)
    assert code == 2 and "nowhere" in text
    assert seconds < 0.5
    code, text, seconds = answered(script, "--dataset", "yollava", "--n_training_views", 0)
    assert code == 2 and "--n_training_views" in text
    assert seconds < 0.5


@pytest.mark.parametrize("module", ["extraction", "detection", "vqa"])
def test_help_imports_no_models(module: str) -> None:
    code = (
        f"import sys; sys.argv = ['x', '--help']\nfrom pekit.cli.{module} import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'albumentations'} & set(sys.modules); print(heavy); sys.exit(len(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=script_environment())
    assert result.returncode == 0, result.stdout


class TestMistakesFoundBeforeModelsLoad:
    """Exit code 2 and one sentence, from the scripts themselves."""

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_no_such_data_folder(self, tmp_path: Path, script: str) -> None:
        result = run_script(script, "--dataset", "yollava", "--data_folder", tmp_path / "nowhere")
        assert_refused(result, "--data_folder", "nowhere")

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_another_data_set_s_folder(self, tmp_path: Path, script: str) -> None:
        write_yollava(tmp_path, ["mug"], 1, 1)
        result = run_script(script, "--dataset", "this-is-my", "--data_folder", tmp_path)
        assert_refused(result, "--data_folder", "This-is-My-Img")

    def test_no_such_split(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug"], 1, 1)
        result = run_script("detection.py", "--dataset", "yollava", "--data_folder", tmp_path, "--split", "validation")
        assert_refused(result, "--split", "validation")

    def test_no_such_set_of_models(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug"], 1, 1)
        result = run_script("detection.py", "--dataset", "yollava", "--data_folder", tmp_path, "--models", "papers")
        assert_refused(result, "--models", "papers")

    def test_a_test_split_where_there_is_none(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug"], 1, 1)
        options = ("--dataset", "yollava", "--data_folder", tmp_path, "--test_split", "Fake")
        assert_refused(run_script("detection.py", *options), "--test_split")

    def test_multi_concept_that_is_not_there(self, tmp_path: Path) -> None:
        write_this_is_my(tmp_path, ["Alexs hat-hat"], 1, 1)
        options = ("--dataset", "this-is-my", "--data_folder", tmp_path, "--multi_concept")
        assert_refused(run_script("extraction.py", *options), "Multi-concept")

    def test_photos_that_would_share_a_view(self, tmp_path: Path, call: Callable, models: Path) -> None:
        write_yollava(tmp_path / "data", ["mug"], 2, 1)
        (tmp_path / "data/YoLLaVA/train/mug/1.png").rename(tmp_path / "data/YoLLaVA/train/mug/0.jpg")
        options = ("--data_folder", tmp_path / "data", "--features_folder", tmp_path / "f", "--models", models)
        assert_refused(call(extraction.main, "--dataset", "yollava", *options), "0.jpg", "0.png")
