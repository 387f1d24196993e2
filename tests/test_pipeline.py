"""Batches that do not fit, and what is kept of a photo."""

import logging
import weakref
from pathlib import Path

import pytest
import torch

from pekit.cli import LoadingSettings
from pekit.hub import is_out_of_memory
from pekit.pictures import Batch, Task
from pekit.pipeline import _Steps
from pekit.records import Photo, UserError

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.01 GB, other allocations: 2.1 MB)."),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_device_is_known_whoever_tells(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_no_lack_of_memory() -> None:
    illegal = torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)
    words = "CUDA error: out of memory"  # in another's mouth
    assert not any(map(is_out_of_memory, (illegal, ValueError(words), RuntimeError("shapes cannot be multiplied"))))


def batch_of(count: int) -> Batch:
    tasks = [Task(Photo(Path(f"{i}.png"), f"{i}.png")) for i in range(count)]
    return Batch(tasks, {"features": torch.arange(count, dtype=torch.float32)[:, None]})


class Stage:
    """Runs out of memory on more than ``room`` pictures; gives each picture's number back."""

    def __init__(self, room: int, error: Exception = FULL[0]) -> None:
        self.room, self.sizes, self.error = room, [], error

    def __call__(self, batch: Batch) -> list[float]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return batch.inputs["features"][:, 0].tolist()


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8])
def test_out_of_memory_halves_the_batch_and_loses_nothing(room: int, caplog: pytest.LogCaptureFixture) -> None:
    steps, stage = _Steps(LoadingSettings(batch_size=8), torch.device("cpu")), Stage(room)
    with caplog.at_level(logging.WARNING):
        assert steps(stage, batch_of(8)) == [0, 1, 2, 3, 4, 5, 6, 7]
        tried = len(stage.sizes)
        assert steps(stage, batch_of(7)) == [0, 1, 2, 3, 4, 5, 6]
    assert max(stage.sizes[tried:]) <= room  # what did not fit is not tried again
    assert bool(caplog.records) == (room < 8)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_any_error_of_a_full_device_halves_the_batch_and_no_other(error: Exception) -> None:
    assert _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))(Stage(2, error), batch_of(4)) == [0, 1, 2, 3]
    stage = Stage(2, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))(stage, batch_of(4))
    assert stage.sizes == [4]


def test_what_a_failed_pass_computed_is_gone_when_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[weakref.ref] = []
    alive: list[bool] = []

    def stage(batch: Batch) -> list[float]:
        result = batch.inputs["features"][:, 0] + 1
        computed.append(weakref.ref(result))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return result.tolist()

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(computed[-1]() is not None))
    assert _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))(stage, batch_of(4)) == [1, 2, 3, 4]
    assert alive == [False]


def test_one_photo_that_does_not_fit_is_a_users_error() -> None:
    steps = _Steps(LoadingSettings(batch_size=2), torch.device("cpu"))
    with pytest.raises(UserError, match="--dtype bfloat16"):
        steps(Stage(0), batch_of(2))


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", 16), ("mps", 8), ("cpu", 4), ("xpu", 4), ("meta", 4)])
def test_auto_starts_from_the_devices_batch(device: str, expected: int) -> None:
    assert _Steps(LoadingSettings(batch_size=0), torch.device(device)).piece == expected
