"""The trainings: optimisers, what a training leaves on disk, and a few real steps of each."""

import json
import pickle
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import AutoModel

from pekit.cli import SAMPLE_CHECKPOINTS
from pekit.records import UserError
from pekit.sample.evaluate import Row
from pekit.sample.models import write_model, write_models
from pekit.sample.models.grounding import build_processor
from pekit.sample.train import features, lvlm, masks
from pekit.sample.train.__main__ import main
from pekit.sample.train.grounding import Steps
from pekit.sample.train.optimisers import Muon, Optimisers, schedule
from pekit.sample.train.runs import Run, begin, finish, load_state, moved, save_state, take_steps
from pekit.sample.train.scenes import open_bank


def test_schedule_rises_stays_and_falls() -> None:
    assert [schedule(progress) for progress in (0, 0.03, 0.3, 0.5, 0.75, 0.99)] == pytest.approx(
        [0.01, 1, 1, 1, 0.5, 0.02]
    )


def test_each_weight_has_one_optimiser_and_frozen_ones_none() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    model[2].requires_grad_(False)
    head = torch.nn.Linear(2, 2)
    optimisers = Optimisers(model, head.parameters(), rate=0.05)
    chosen = {name: part.param_groups[0]["params"] for name, part in optimisers.parts.items()}
    assert [weight is model[1].weight for weight in chosen["muon"]] == [True]
    assert sorted(map(id, chosen["adam"])) == sorted(
        id(weight) for weight in (*model[0].parameters(), model[1].bias, *head.parameters())
    )
    frozen, picture = model[2].weight.clone(), torch.randn(5, 3, 1, 1)
    losses = []
    for _ in range(60):
        loss = (head(model[1:](model[0](picture).flatten(1))) - 1).square().mean()
        losses.append(loss.item())
        optimisers.step(loss, 0.2)
    assert losses[-1] < 0.2 * losses[0]
    assert torch.equal(model[2].weight, frozen)


def test_muon_steps_as_torchs_own_does() -> None:
    """Whose steps are rounded to bfloat16, and differ by about a hundredth for that."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 20), (16, 16)]
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(shape, generator=generator.manual_seed(1))) for shape in shapes]
        for _ in range(2)
    )
    for weights, optimiser in ((ours, Muon(ours[:4], lr=0.1)), (theirs, torch.optim.Muon(theirs[:4], lr=0.1))):
        generator.manual_seed(2)
        for _ in range(3):
            for weight in (*weights[:3], weights[4]):  # the fourth has no gradient, the fifth no optimiser
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimiser.step()
    starts = [torch.randn(shape, generator=generator.manual_seed(1)) for shape in shapes]
    for mine, torchs, start in zip(ours[:3], theirs[:3], starts[:3], strict=True):
        assert torch.dist(mine, torchs) < 0.03 * torch.dist(torchs, start)
    assert torch.equal(ours[3], starts[3]) and torch.equal(ours[4], starts[4])


def test_a_part_goes_at_its_own_pace() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    before = [layer.weight.clone() for layer in model]
    optimisers = Optimisers(model, paces={model[0]: 0.0, model[1]: 0.25})
    optimisers.step(model(torch.randn(9, 4)).square().mean(), 0.2)
    still, slow, full = (
        torch.linalg.matrix_norm(layer.weight - old, 2).item() for layer, old in zip(model, before, strict=True)
    )
    assert still == 0
    assert 0.1 < slow / full < 0.5  # Muon's steps have all about one size, whatever the gradient


def test_state_is_resumed(tmp_path: Path) -> None:
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    run = Run("masks", tmp_path, "cpu", 20, 7, 0)
    assert load_state(run, {"layer": other}) == (0, 0.0)
    save_state(run, {"layer": layer}, 12, 3.5)
    assert run.state == tmp_path / "work" / "masks.pt"
    assert load_state(run, {"layer": other}) == (12, 3.5)
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(UserError, match=r"has --seed 7, not 8: .*--out"):
        begin(replace(run, seed=8))
    with pytest.raises(UserError, match=r"done 12 steps, --steps 11 are fewer: .*--out"):
        begin(replace(run, steps=11))
    begin(replace(run, steps=12))
    for parts in ({"layer": torch.nn.Linear(3, 4)}, {"another": other}):
        with pytest.raises(UserError, match=r"built otherwise: .*--out"):
            load_state(run, parts)


class Squares(Dataset[int]):
    """Batches that tell their step."""

    def __getitem__(self, step: int) -> int:
        return step * step


class Grids(Dataset[dict[str, torch.Tensor]]):
    """Batches of megabytes, their numbers not in the order of memory."""

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {"grid": torch.arange(step, step + 600_000).reshape(1000, 600).mT, "flag": torch.tensor(step == 1)}


def test_steps_go_on_where_the_state_was_saved_and_show_their_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run("masks", tmp_path, "cpu", 150, 7, 0)
    taken: list[tuple[int, int]] = []

    def step(number: int, batch: int) -> dict[str, torch.Tensor]:
        if number == stops_at:
            raise KeyboardInterrupt
        taken.append((number, batch))
        figure = float("nan") if number % 2 else float(number)
        return {
            "number": torch.tensor(figure, requires_grad=True),
            **({"loss": torch.tensor(2.0)} if not number else {}),
        }

    caplog.set_level("INFO")
    stops_at = 130
    with pytest.raises(KeyboardInterrupt):
        take_steps(run, Squares(), {}, step)
    assert load_state(run, {})[0] == 100
    stops_at = -1
    take_steps(run, Squares(), {}, step)
    assert taken == [(number, number * number) for number in (*range(130), *range(100, 150))]
    assert load_state(run, {})[0] == 150
    shown = [record.getMessage().split(" s: ")[1] for record in caplog.records]
    means = [12, 37, 62, 87, 112, 112, 137]  # the steps from 100 to 124 were taken twice
    assert shown == ["loss 2.000, " * (mean == 12) + f"number {mean:.3f}" for mean in means]


def test_batches_come_from_workers_as_they_come_without(tmp_path: Path) -> None:
    """Also in a container whose /dev/shm is full: they leave it alone."""
    received = []
    for workers, out in ((1, "one"), (0, "none")):
        seen: list[dict[str, torch.Tensor]] = []
        run = Run("masks", tmp_path / out, "cpu", 3, 7, workers)
        with fewer_bytes_to_a_file(1_000_000) if workers else nullcontext():
            take_steps(run, Grids(), {}, lambda number, batch, seen=seen: seen.append(batch) or {})
        received.append(seen)
    for ahead, alone, step in zip(*received, range(3), strict=True):
        assert torch.equal(ahead["grid"], torch.arange(step, step + 600_000).reshape(1000, 600).mT)
        assert torch.equal(ahead["grid"], alone["grid"]) and ahead["grid"].stride() == alone["grid"].stride()
        assert ahead["flag"].item() is alone["flag"].item() is (step == 1)


@contextmanager
def fewer_bytes_to_a_file(most: int) -> Iterator[None]:
    """As /dev/shm refuses more where it is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_are_moved_wherever_they_are(tmp_path: Path) -> None:
    inner = Row("SAM", "kept as it is", 0.5, 0.5, True, 1)
    steps = Steps(open_bank(tmp_path, 3, n_scenes=10, size=160, workers=0), build_processor(), 3, 10)
    batch = moved(steps[9], "meta")
    tensors = [batch.pixels, *batch.tokens.values(), *vars(batch.targets).values()]
    assert len(tensors) == 8 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved(inner, "meta") == inner


def written(batch: object) -> bytes:
    file = BytesIO()
    torch.save(batch, file)
    return file.getvalue()


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    """Also in a worker process, which receives the data set pickled."""
    bank = open_bank(tmp_path, 3, n_scenes=40, size=160, workers=1)
    for steps in (
        Steps(bank, build_processor(), 3, 10),
        masks.Steps(bank, 3),
        features.Steps(bank, 3, 10, 0),
        lvlm.Views(3, 10),
    ):
        there = pickle.loads(pickle.dumps(steps))
        there[2]
        assert written(steps[9]) == written(there[9]) != written(steps[8])


def test_weights_are_halved_and_compute_in_single_precision(tmp_path: Path) -> None:
    run = Run("features", tmp_path, "cpu", 1, 0, 0)
    write_model("features", run.folder, 0)
    before = AutoModel.from_pretrained(run.folder).state_dict()
    size = (run.folder / "model.safetensors").stat().st_size
    finish(run, lambda folder, device: [], "", 1)
    assert (run.folder / "model.safetensors").stat().st_size < 0.55 * size
    assert len({file.stat().st_mode for file in run.folder.iterdir()}) == 1
    for name, weight in AutoModel.from_pretrained(run.folder).state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, before[name].half().float(), rtol=0, atol=0)


def finished(run: Run, card: str, rows: Sequence[Row], seconds: float) -> Path:
    run.folder.mkdir()
    save_file({"weight": torch.zeros(1)}, run.folder / "model.safetensors")
    (run.folder / "config.json").touch()
    finish(run, lambda folder, device: rows, card, seconds)
    return run.folder


def test_figures_stand_in_the_record_and_on_the_card(tmp_path: Path) -> None:
    rows = [Row("SAM", "mean IoU", 0.87654, 0.85, True, 10), Row("SAM", "misses", 0.5, 0.1, False, 10)]
    card = "# Card\n{table}\n{minutes} min, {machine}, {seed}, {steps}\n"
    folder = finished(Run("masks", tmp_path, "cpu", 30, 7, 0), card, rows, 600)
    record = json.loads((folder / "training.json").read_text())
    assert record["command"] == "python -m pekit.sample.train masks --out DIR --steps 30 --seed 7"
    assert (record["minutes"], record["held_out"]) == (10, {"mean IoU": 0.8765, "misses": 0.5})
    assert (folder / "README.md").read_text() == (
        "# Card\n| mean IoU | 0.877 | at least 0.85 |\n| misses | 0.500 | at most 0.10 |\n"
        "10 min, one processor core, 7, 30\n"
    )


def test_record_of_a_training_on_a_gpu_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "Some GPU"}.get)
    folder = finished(Run("masks", tmp_path, "cuda:1", 30, 7, 2), "{minutes} min on {machine}", [], 60)
    record = json.loads((folder / "training.json").read_text())
    assert record["command"].endswith("--steps 30 --seed 7 --device cuda:1") and record["machine"] == "Some GPU"
    assert (folder / "README.md").read_text() == "1 min on Some GPU and 2 workers"


def test_a_device_that_is_not_there_is_told_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["masks", "--out", str(tmp_path / "out"), "--device", "cuda:77"]) == 2
    assert "--device cuda:77 is not usable here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    options = ("--steps", "1", "--workers", "0")
    assert main(["masks", "--out", str(tmp_path / "file/below"), *options]) == 2
    [sentence] = [line for line in capsys.readouterr().err.splitlines() if str(tmp_path / "file/below") in line]
    assert "Not a directory" in sentence
    with pytest.raises(SystemExit) as refused:
        main(["masks", "--out", str(tmp_path / "file"), *options])
    assert refused.value.code == 2 and "file' is a file: name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_training_is_stopped_by_hand_and_takes_whole_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pekit.sample.train.masks.train", stop)
    assert main(["masks", "--out", str(tmp_path)]) == 130
    assert "stopped: the same command goes on" in capsys.readouterr().err
    for steps in ("-3", "0", "x"):
        with pytest.raises(SystemExit) as refused:
            main(["masks", "--out", str(tmp_path), "--steps", steps])
        assert refused.value.code == 2 and "--steps" in capsys.readouterr().err
    for option in (("--seed", "-1"), ("--workers", "-2"), ("--out", "")):
        with pytest.raises(SystemExit) as refused:
            main(["masks", "--out", str(tmp_path), *option])
        assert refused.value.code == 2 and option[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["grounding", "features", "masks", "lvlm"])
def test_a_training_runs_and_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"pekit.sample.train.{name}")
    monkeypatch.setattr(module, "evaluate", lambda folder, device: [Row(name, f"asked on {device}", 0.5, 0.5, True, 1)])
    if name != "lvlm":  # which draws its scenes as it goes
        bank = open_bank(tmp_path / "work", 3, n_scenes=40, size=224, workers=1)
        monkeypatch.setattr(module, "open_bank", lambda *args, **kwargs: bank)
    else:
        with pytest.raises(UserError, match=r"train features --out"):
            module.train(Run(name, tmp_path, "cpu", 3, 3, workers=0))
        write_model("features", tmp_path / "features", 3)
    threads = torch.get_num_threads()

    def train(steps: int, seed: int = 3) -> None:
        module.train(Run(name, tmp_path, "cpu", steps, seed, workers=0))

    try:
        train(3)
        state = tmp_path / "work" / f"{name}.pt"
        assert torch.load(state, weights_only=True)["step"] == 3
        before = AutoModel.from_pretrained(tmp_path / name).state_dict()
        trained = {file: file.read_bytes() for file in (tmp_path / name).iterdir()}
        with pytest.raises(UserError, match=rf"{name}.*--seed 3, not 4"):
            train(5, seed=4)
        with pytest.raises(UserError, match=rf"{name}.*3 steps"):
            train(2)
        with monkeypatch.context() as stopped:
            stopped.setattr("pekit.sample.train.runs.save_state", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                train(5)
        assert {file: file.read_bytes() for file in (tmp_path / name).iterdir()} == trained
        train(5)
        state.rename(tmp_path / "kept.pt")
        trained = {file: file.read_bytes() for file in (tmp_path / name).iterdir()}
        with pytest.raises(UserError, match=rf"{name} holds a model, and .*{name}\.pt is not there.*--out"):
            train(5)
        assert {file: file.read_bytes() for file in (tmp_path / name).iterdir()} == trained
        (tmp_path / "kept.pt").rename(state)
    finally:
        torch.set_num_threads(threads)
    assert torch.load(state, weights_only=True)["step"] == 5
    after = AutoModel.from_pretrained(tmp_path / name).state_dict()
    changed = [key for key, weight in after.items() if not torch.equal(weight, before[key])]
    assert len(changed) > len(after) / 2
    record = json.loads((tmp_path / name / "training.json").read_text())
    assert record["steps"] == 5 and record["held_out"] == {"asked on cpu": 0.5}


@pytest.mark.parametrize("module", [features, masks])
def test_what_a_run_becomes_follows_from_its_seed(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = open_bank(tmp_path / "work", 3, n_scenes=40, size=224, workers=1)
    monkeypatch.setattr(module, "open_bank", lambda *args, **kwargs: bank)
    monkeypatch.setattr(module, "evaluate", lambda folder, device: [])
    name, threads = module.__name__.rpartition(".")[2], torch.get_num_threads()
    weights = []
    try:
        for out, seed in (("one", 3), ("same", 3), ("other", 4)):
            torch.rand(int(torch.randint(1, 9, ())))  # whatever has drawn from torch's generator before
            module.train(Run(name, tmp_path / out, "cpu", 1, seed, workers=0))
            weights.append((tmp_path / out / name / "model.safetensors").read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert weights[0] == weights[1] != weights[2]


def test_new_models_leave_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", Mock(side_effect=AssertionError("a GPU's generator was asked")))
    write_models(tmp_path, 3)


@pytest.mark.parametrize("name", ["grounding", "features", "masks", "lvlm"])
def test_a_model_is_measured_on_the_device_asked_for(name: str) -> None:
    evaluate = import_module(f"pekit.sample.evaluate.{name}").evaluate
    with pytest.raises((AssertionError, RuntimeError, UserError), match=r"(?i)cuda|nvidia"):  # there is no such one
        evaluate(SAMPLE_CHECKPOINTS / name, device="cuda:77")
