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
    sides = {"bare passes", "extraction", "detection"}
    assert set(run("extraction", *options)["medians"]) == sides
    assert set(run("extraction", *options, "--released", "--dtype", "bfloat16")["medians"]) == {*sides, "released way"}


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
