"""The scripts as processes: Ctrl-C is quiet from the first import on, and what is imported before it takes no time."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import NoReturn


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
