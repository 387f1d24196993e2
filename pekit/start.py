"""The scripts as processes: Ctrl-C is quiet from the first import on, and what is imported before it takes no time."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes begun in it never hear it: it is the main one's to handle.

    An initializer of the workers would be too late: Ctrl-C while they import prints their tracebacks. For the main
    thread alone.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # begun with the first of the processes, it would let Ctrl-C through to them
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))  # by threads that do not hold it back
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _run(module: str) -> NoReturn:
    try:
        code = importlib.import_module(module).main()
        # The interpreter takes seconds to end; whoever is impatient would be shown its traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # before there was anything to keep
        code = 130
    sys.exit(code)


def extraction() -> NoReturn:
    """Run extraction.py."""
    _run("pekit.cli.extraction")


def detection() -> NoReturn:
    """Run detection.py."""
    _run("pekit.cli.detection")


def vqa() -> NoReturn:
    """Run vqa.py."""
    _run("pekit.cli.vqa")
