"""Batches that do not fit, and what is kept of a photo."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from pekit.hub import is_out_of_memory
from pekit.pictures import Batch, Task
from pekit.pipeline import _beside, _Steps
from pekit.records import LoadingSettings, Photo, UserError

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
    return Batch(tasks, {"features": list(torch.arange(count))})


def results(steps: _Steps, stage: Callable[[Batch], list[int]], batch: Batch) -> list[int]:
    """What a stage gives for all pieces of a batch."""
    pieces = steps(stage, batch)
    assert [task for piece, _ in pieces for task in piece.tasks] == batch.tasks
    return [number for _, own in pieces for number in own]


class Stage:
    """Runs out of memory on more than ``room`` pictures; gives each picture's number back."""

    def __init__(self, room: int, error: Exception = FULL[0]) -> None:
        self.room, self.sizes, self.error = room, [], error

    def __call__(self, batch: Batch) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return [int(number) for number in batch.inputs["features"]]


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8])
def test_out_of_memory_halves_the_batch_and_loses_nothing(room: int, caplog: pytest.LogCaptureFixture) -> None:
    steps, stage = _Steps(LoadingSettings(batch_size=8), torch.device("cpu")), Stage(room)
    with caplog.at_level(logging.WARNING):
        assert results(steps, stage, batch_of(8)) == [0, 1, 2, 3, 4, 5, 6, 7]
        tried = len(stage.sizes)
        assert results(steps, stage, batch_of(7)) == [0, 1, 2, 3, 4, 5, 6]
    assert max(stage.sizes[tried:]) <= room  # what did not fit is not tried again
    assert bool(caplog.records) == (room < 8)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_any_error_of_a_full_device_halves_the_batch_and_no_other(error: Exception) -> None:
    steps = _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))
    assert results(steps, Stage(2, error), batch_of(4)) == [0, 1, 2, 3]
    stage = Stage(2, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))(stage, batch_of(4))
    assert stage.sizes == [4]


def test_what_a_failed_pass_computed_is_gone_when_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[weakref.ref] = []
    alive: list[bool] = []

    def stage(batch: Batch) -> list[int]:
        result = torch.stack(batch.inputs["features"]) + 1
        computed.append(weakref.ref(result))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return result.tolist()

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(computed[-1]() is not None))
    steps = _Steps(LoadingSettings(batch_size=4), torch.device("cpu"))
    assert results(steps, stage, batch_of(4)) == [1, 2, 3, 4]
    assert alive == [False]


def test_one_photo_that_does_not_fit_is_a_users_error() -> None:
    steps = _Steps(LoadingSettings(batch_size=2), torch.device("cpu"))
    with pytest.raises(UserError, match="--dtype bfloat16"):
        steps(Stage(0), batch_of(2))


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", 16), ("mps", 8), ("cpu", 4), ("xpu", 4), ("meta", 4)])
def test_auto_starts_from_the_devices_batch(device: str, expected: int) -> None:
    assert _Steps(LoadingSettings(batch_size=0), torch.device(device)).piece == expected


class TestReadingBesideTheModels:
    """On a GPU what the models gave is read in a thread; here the thread is real and the GPU is not."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What is asked of the GPU, in order."""
        asked: list[str] = []

        class Stream:
            def __init__(self, _device: torch.device) -> None:
                pass

            def record_event(self) -> str:
                return "computed"

            def wait_event(self, event: str) -> None:
                asked.append(f"waits till {event}")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empties its cache"))
        return asked

    CUDA = torch.device("cuda:0")

    def test_one_pass_is_read_while_the_next_one_runs(self, gpu: list[str]) -> None:
        running = [threading.Event() for _ in range(4)]

        def reading(number: int) -> Callable[[], int]:
            def read() -> int:
                assert threading.current_thread() is not threading.main_thread()
                assert number == 3 or running[number + 1].wait(20), "the next pass waits for this one's reading"
                return number

            return read

        def passes() -> Iterator[Callable[[], int]]:
            for number in range(4):
                running[number].set()
                yield reading(number)

        assert list(_beside(passes(), self.CUDA)) == [0, 1, 2, 3]
        assert gpu == ["waits till computed"] * 4

    def test_no_more_than_one_pass_is_ahead(self) -> None:
        begun: list[int] = []

        def passes() -> Iterator[Callable[[], int]]:
            for number in range(5):
                begun.append(number)
                yield lambda: 0

        for done, _ in enumerate(_beside(passes(), self.CUDA), 1):
            assert len(begun) <= done + 1

    @pytest.mark.parametrize("error", [UserError("no photo"), KeyboardInterrupt()])
    def test_what_is_finished_is_handed_on_before_an_error_ends_it(self, error: BaseException) -> None:
        def passes() -> Iterator[Callable[[], int]]:
            yield lambda: 1
            raise error

        found = _beside(passes(), self.CUDA)
        assert next(found) == 1
        with pytest.raises(type(error)):
            next(found)

    @pytest.mark.parametrize("error", FULL, ids=str)
    def test_reading_that_finds_no_room_is_done_again_by_itself(self, gpu: list[str], error: Exception) -> None:
        """Readings share buffers; and what the one that failed had computed would take the room once more."""
        computed: list[weakref.ref] = []
        at_work: list[str] = []

        def full() -> str:
            result = torch.ones(1)
            computed.append(weakref.ref(result))
            at_work.append("full")
            if len(computed) == 1:
                raise type(error)(*error.args)
            assert at_work == ["full", "other", "other done", "full"]
            assert computed[0]() is None and gpu[-1] == "empties its cache"
            return "full"

        def other() -> str:
            at_work.append("other")
            time.sleep(0.2)
            at_work.append("other done")
            return "other"

        assert list(_beside(iter([full, other]), self.CUDA)) == ["full", "other"]

    def test_the_first_error_is_told_and_what_was_read_is_handed_on(self) -> None:
        def failing(words: str) -> Callable[[], int]:
            def read() -> int:
                raise UserError(words)

            return read

        found = _beside(iter([lambda: 1, failing("first"), failing("second")]), self.CUDA)
        assert next(found) == 1
        with pytest.raises(UserError, match="first"):
            next(found)

    def test_ctrl_c_while_a_reading_is_waited_for_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wait, waits = Future.result, iter([True])

        def interrupted_once(future: Future) -> int:
            if next(waits, False):
                raise KeyboardInterrupt
            return wait(future)

        monkeypatch.setattr(Future, "result", interrupted_once)
        found = _beside(iter([lambda: 0, lambda: 1]), self.CUDA)
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(KeyboardInterrupt):
            next(found)

    def test_another_error_of_reading_is_raised(self) -> None:
        def read() -> int:
            raise UserError("not finite")

        with pytest.raises(UserError, match="not finite"):
            list(_beside(iter([read]), self.CUDA))

    def test_on_a_cpu_one_thread_does_all(self) -> None:
        read = [threading.current_thread] * 2
        assert list(_beside(iter(read), torch.device("cpu"))) == [threading.main_thread()] * 2
