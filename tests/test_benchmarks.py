"""Every benchmark runs at toy size and reports what it says it measures. Times are not tested."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_yollava
from transformers import Dinov2Config, Dinov2Model

TOY = {
    "recognition": ("--proposals", "20", "--concepts", "3", "--views", "2", "--width", "16"),
    "pooling": ("--proposals", "20", "--width", "16"),
    "gallery": ("--proposals", "5", "--concepts", "30", "--views", "2", "--width", "16"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict]:
    """Run a benchmark in this process with options; its JSON result."""
    monkeypatch.syspath_prepend(str(ROOT))

    def measure(name: str, *options: str) -> dict:
        result = tmp_path / "result.json"
        shared = ["--repeats", "1", "--threads", str(torch.get_num_threads()), "--json", str(result)]
        monkeypatch.setattr(sys, "argv", [name, *shared, *options])
        importlib.import_module(f"benchmarks.{name}").main()
        return json.loads(result.read_text())

    return measure


@pytest.mark.parametrize("name", TOY)
def test_runs_at_toy_size(name: str, run: Callable[..., dict]) -> None:
    found = run(name, *TOY[name])
    assert len(found["medians"]) >= 2
    assert found["ratios"][found["base"]] == 1
    assert all(value > 0 for value in found["medians"].values())


def test_the_pipeline_against_bare_passes(models: Path, run: Callable[..., dict]) -> None:
    options = ("--photos", "2", "--side", "200", "--workers", "0", "--concepts", "2", "--models", str(models))
    sides = {"bare passes", "photos alone", "extraction", "detection"}
    assert set(run("extraction", *options)["medians"]) == sides
    released = (*options, "--released", "--released_photos", "1", "--dtype", "bfloat16")
    assert set(run("extraction", *released)["medians"]) == {*sides, "released way"}


def test_a_run_that_is_cut_off_keeps_its_rounds(
    models: Path, run: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extraction = importlib.import_module("benchmarks.extraction")
    taken: list[int] = []

    def released_way(recognizer: object, photos: list, gallery: object) -> Callable[[], None]:
        def side() -> None:
            if taken.count(2) == 1:  # the second round
                raise KeyboardInterrupt
            taken.append(len(photos))

        return side

    monkeypatch.setattr(extraction, "released_way", released_way)
    options = ("--photos", "3", "--side", "200", "--workers", "0", "--concepts", "2", "--models", str(models))
    with pytest.raises(KeyboardInterrupt):
        run("extraction", *options, "--released", "--released_photos", "2", "--repeats", "5")
    assert taken == [1, 2]  # one photo to warm up
    kept = json.loads((tmp_path / "result.json").read_text())["seconds"]
    assert {name: len(values) for name, values in kept.items()} == dict.fromkeys(
        ("bare passes", "photos alone", "extraction", "detection", "released way"), 1
    )


def test_bare_passes_find_their_batches_ready(
    models: Path, run: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or casting and copying would be in the time that the pipeline is compared with."""
    extraction, to = importlib.import_module("benchmarks.extraction"), torch.Tensor.to
    converted: list[torch.Size] = []

    def recorded(tensor: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        if (result := to(tensor, *args, **options)) is not tensor:
            converted.append(tensor.shape[1:2])
        return result

    def rounds(sides: dict, repeats: int, warm: object) -> list:
        monkeypatch.setattr(torch.Tensor, "to", recorded)
        sides["bare passes"]()
        monkeypatch.setattr(torch.Tensor, "to", to)
        return []

    monkeypatch.setattr(extraction, "rounds", rounds)
    options = ("--photos", "1", "--side", "200", "--workers", "0", "--concepts", "2", "--models", str(models))
    with pytest.raises(FileNotFoundError):  # no round, no result
        run("extraction", *options, "--dtype", "bfloat16")
    assert (3,) not in converted  # no picture, that is


def test_the_clock_waits_for_a_gpu_that_is_in_use(run: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> None:
    measuring, seen = importlib.import_module("benchmarks.measuring"), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("waits"))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: seen.append("clock") or 0.0)
    measuring.in_turn({"one": lambda: seen.append("one")}, 1)
    assert seen == ["one", "waits", "clock", "one", "waits", "clock"]


def test_bare_passes_by_setting(models: Path, run: Callable[..., dict]) -> None:
    found = run("passes", "--paper", str(models), "--small", str(models))
    base, medians = found["base"], found["medians"]
    assert base == "both: paper, float32" and len(medians) == 12
    assert found["ratios"][base] == 1
    for setting in ("paper, bfloat16", "small, float32"):
        parts = [medians[f"{model}: {setting}"] for model in ("Grounding DINO", "DINOv2")]
        assert medians[f"both: {setting}"] == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("recognition", ("--repeats", "0"), "--repeats"),
        ("gallery", ("--concepts", "0"), "--concepts"),
        ("pooling", ("--proposals", "-3"), "--proposals"),
        ("extraction", ("--dtype", "float99"), "float99"),
        ("extraction", ("--models", "nosuch"), "--models nosuch is no folder"),
        ("pooling", ("--json", "/nonexistent/x.json"), "/nonexistent/x.json"),
        ("workers", ("--models", "nosuch"), "--models nosuch is neither"),
        ("workers", ("--datasets", ".", "--copies", "2"), "--copies"),
    ],
)
def test_mistakes_are_told(
    name: str, options: tuple, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("benchmarks.measuring").start(importlib.import_module(f"benchmarks.{name}").main)
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_sizes_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    sizes = importlib.import_module("benchmarks.published").SIZES
    with torch.device("meta"):
        counts = {
            which: Dinov2Model(Dinov2Config(**dino, image_size=518, patch_size=14)).num_parameters()
            for which, (_, dino) in sizes.items()
        }
    assert counts == {"paper": 304_368_640, "small": 86_580_480}  # of the checkpoints on the hub


def test_processes_against_one(models: Path, run: Callable[..., dict], tmp_path: Path) -> None:
    write_yollava(tmp_path / "datasets", ["red-mug"], train=2, test=1)
    found = run("workers", "--models", str(models), "--datasets", str(tmp_path / "datasets"))
    assert set(found["medians"]) == {"one process", "2 processes"}
