"""Checkpoints of the hub: what they are is known before their weights are loaded, whatever is on disk already."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, script_environment
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModel

from pekit import hub
from pekit.records import UserError

NAME = "someone/dino"


def test_downloads_are_shown_and_loading_is_not() -> None:
    assert not are_progress_bars_disabled()
    assert not transformers.utils.logging.is_progress_bar_enabled()


def test_who_switches_downloads_off_is_heeded() -> None:
    code = "import pekit.hub, huggingface_hub.utils as u; print(u.are_progress_bars_disabled())"
    environment = script_environment(HF_HUB_DISABLE_PROGRESS_BARS="1")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (run.stdout, run.stderr) == ("True\n", "")


def checkpoint() -> hub.Checkpoint:
    return hub.Checkpoint("--dino_model", NAME, NAME, "abc", None)


@pytest.fixture(params=[None, "400KB"])
def published(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Path:
    """A checkpoint as it lies on the hub, its weights in one file or in shards."""
    folder = tmp_path / "published"
    shards = {"max_shard_size": request.param} if request.param else {}
    AutoModel.from_pretrained(models / "features").save_pretrained(folder, **shards)
    assert len(list(folder.glob("*.safetensors"))) > 1 if request.param else (folder / "model.safetensors").exists()
    return folder


def test_what_is_not_on_disk_is_fetched_before_it_is_described(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()

    def fetch(name: str, file: str, **options: object) -> str | None:
        assert name == NAME and options["revision"] == "abc"
        if not (published / file).exists():
            return None
        shutil.copy(published / file, cache)
        return str(cache / file)

    def fetch_shards(name: str, index: str, **options: object) -> None:
        for file in set(json.loads(Path(index).read_text())["weight_map"].values()):
            fetch(name, file, **options)

    monkeypatch.setattr(hub, "cached_file", fetch)
    monkeypatch.setattr(hub, "get_checkpoint_shard_files", fetch_shards)
    described = checkpoint().described()
    assert described["fingerprint"] == hub.fingerprint(published) != ""
    assert {file.name for file in cache.glob("*.safetensors")} == {
        file.name for file in published.glob("*.safetensors")
    }
    changed = next(iter(cache.glob("*.safetensors")))
    changed.write_bytes(bytes(changed.stat().st_size))
    assert hub.fingerprint(cache) != described["fingerprint"]


@pytest.mark.parametrize("weights", ["safetensors", "bin", ""])
def test_the_hubs_own_cache_without_network(published: Path, weights: str, tmp_path: Path) -> None:
    """In a process of its own, as the library reads where its cache is when it is imported."""
    if weights == "bin":
        for file in published.glob("*.safetensors*"):
            file.unlink()
        torch.save({}, published / "pytorch_model.bin")
    commit = "abc" + 37 * "0"
    cache = tmp_path / "hf/hub/models--someone--dino"
    snapshot = cache / "snapshots" / commit
    shutil.copytree(published, snapshot, ignore=None if weights else shutil.ignore_patterns("*.safetensors*"))
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    lines = (
        "from pekit import hub",
        f"for name in ({NAME!r}, {NAME + '@main'!r}):",
        "    described = hub.find_checkpoint(name, '--dino_model').described()",
        "    print(described['revision'], described['fingerprint'])",
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=False
    )
    # Where they cannot be had, loading says so; a run that has nothing left to do needs none.
    fingerprint = hub.fingerprint(published) if weights else ""
    assert result.stdout == 2 * f"{commit} {fingerprint}\n", result.stderr


def test_a_checkpoint_behind_terms_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at its page.")

    monkeypatch.setattr("pekit.hub._ask_once", lambda *args: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"--dino_model some/gated cannot be loaded \(.*gated repo.*hf auth login"):
        hub.find_checkpoint("some/gated", "--dino_model")


def test_a_fingerprint_is_of_the_configuration_too(models: Path, tmp_path: Path) -> None:
    """The same weights with another activation function, say, are another model."""
    folder = tmp_path / "copy"
    shutil.copytree(models / "features", folder)
    assert hub.fingerprint(folder) == hub.fingerprint(models / "features")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert hub.fingerprint(folder) != hub.fingerprint(models / "features")


def test_a_fingerprint_is_of_size_beginning_and_end_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    nothing = bytes(3 * hub.EDGE_BYTES)
    weights = (nothing, b"\1" + nothing[1:], nothing[1:] + b"\1", nothing + bytes(hub.EDGE_BYTES))
    found = []
    for content in weights:
        (tmp_path / "model.safetensors").write_bytes(content)
        found.append(hub.fingerprint(tmp_path))
    assert len(set(found)) == len(weights)


@pytest.mark.parametrize(("commit", "asked_for"), [("abc", "abc"), (None, "main")])
def test_all_parts_are_of_the_revision_that_was_found(commit: str | None, asked_for: str) -> None:
    class Library:
        @staticmethod
        def from_pretrained(name: str, revision: str = "main", **options: object) -> tuple[str, str, dict]:
            return name, revision, options

    found = hub.Checkpoint("--dino_model", f"{NAME}@abc", NAME, commit, None)
    assert found.part(Library, backend="pil") == (NAME, asked_for, {"backend": "pil"})
