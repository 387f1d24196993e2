"""Sharing a run between processes on PyTorch's own engine: ``torchrun``, or one process per ``--device_ids`` entry.

Each process takes every world-th photo; processes meet only to exchange small records. Imports torch when used.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pekit.records import UserError, counted

log = logging.getLogger(__name__)
T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
PATIENCE = 5  # seconds a process has to end before it is told more plainly


class PeerLostError(Exception):
    """Another process of the run has ended early; it, or whoever started it, says why."""


@dataclass(frozen=True)
class Shard:
    """Which of the processes this is.

    Attributes:
        rank: 0..world-1 over all machines.
        world: number of processes.
        local_rank: 0.. on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part."""
        return list(items[self.rank :: self.world])


def usable_cores() -> int:
    """How many cores this process may use: on Linux those that a cluster's scheduler allots, elsewhere all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def current_shard() -> Shard:
    """Read the place that ``torchrun`` (or ``launch``) gave this process."""
    read = os.environ.get
    return Shard(int(read("RANK", "0")), int(read("WORLD_SIZE", "1")), int(read("LOCAL_RANK", "0")))


def shard_device(device: str, device_ids: Sequence[int], shard: Shard) -> str:
    """The device of this process: its entry of ``device_ids``, else its local GPU where there are several processes."""
    if device not in ("auto", "cuda"):
        return device
    if device_ids:
        return f"cuda:{device_ids[shard.local_rank % len(device_ids)]}"
    if shard.world > 1:
        import torch

        if torch.cuda.is_available():
            return f"cuda:{shard.local_rank % torch.cuda.device_count()}"
    return device


@contextmanager
def joined(shard: Shard) -> Iterator[None]:
    """Join the processes of a run for the time of a block."""
    if shard.world == 1:
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise UserError(f"WORLD_SIZE={shard.world} is set, but not by torchrun: unset it, or start by torchrun")
    from torch import distributed

    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)  # one that ends early waits for the slowest
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather(value: T, shard: Shard) -> list[T]:
    """Every process's value, in the order of the ranks, on every process; also a barrier.

    Raises:
        PeerLostError: another process has ended.
    """
    if shard.world == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * shard.world
    try:
        distributed.all_gather_object(values, value)
    except RuntimeError as error:  # the connection to another process is closed
        raise PeerLostError("another process of this run has ended early") from error
    return values


def first(work: Callable[[], T], shard: Shard) -> T:
    """Do ``work()`` on the first process, and then on the others, which find what the first has written.

    Raises:
        UserError: on the first process, that of its work.
        PeerLostError: on the others, where the first's work raised one.
    """
    if shard.rank:
        if not gather(True, shard)[0]:
            raise PeerLostError("the first process has ended early")
        return work()
    try:
        result = work()
    except UserError:
        gather(False, shard)
        raise
    gather(True, shard)
    return result


def agree(value: Any, what: str, shard: Shard) -> None:
    """Make sure that all processes have read the same.

    Raises:
        UserError: they have not.
    """
    if any(other != value for other in gather(value, shard)):
        raise UserError(f"{what} changed while the processes of this run read them: run the same command again")


def launch(work: Callable[[list[str]], int], argv: list[str], device: str, device_ids: Sequence[int]) -> int:
    """Run ``work(argv)`` in a process of this machine for each of ``device_ids``, as ranks 0, 1 and so on.

    Returns:
        The largest exit code.

    Raises:
        UserError: a GPU named is not there.
    """
    import torch
    from torch import multiprocessing

    count, there = len(device_ids), torch.cuda.device_count()
    if device in ("auto", "cuda") and max(device_ids) >= there:
        raise UserError(
            f"--device_ids {','.join(map(str, device_ids))}: this machine has {counted(there, 'CUDA GPU')}: "
            "name those that are there (the first is 0), or leave it out"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = multiprocessing.spawn(_rank, (work, argv, count, port), nprocs=count, join=False)
    try:
        while not processes.join():
            pass
    except KeyboardInterrupt:
        _stop(processes.processes)
        raise
    except multiprocessing.ProcessExitedException as error:
        if error.exit_code > 0:
            return error.exit_code
        log.error(
            "process %d of %d was killed (%s); finished photos are kept: run the same command again",
            error.error_index + 1,
            count,
            error.signal_name or error.exit_code,
        )
        return 1
    return 0


def _stop(processes: Sequence[Any]) -> None:
    """End the processes of a run that Ctrl-C has not reached, as where it was sent to the one that started them."""
    for number in (None, signal.SIGINT, signal.SIGTERM):
        for process in processes:
            if number and process.is_alive():
                os.kill(process.pid, number)
        for process in processes:
            process.join(PATIENCE)


def _rank(rank: int, work: Callable[[list[str]], int], argv: list[str], count: int, port: int) -> None:
    import torch

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update(address, **{name: str(value) for name, value in place.items()})
    torch.set_num_threads(max(1, torch.get_num_threads() // count))  # together they have the cores of one
    code = work(argv)
    if code:
        raise SystemExit(code)
