"""Writing files so that they are either whole or not there. Imports nothing of ours."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes | str | Iterable[str]) -> None:
    """Write a file under another name beside its place and move it there; folders are made as needed.

    Args:
        path: its place.
        content: the whole, or its parts as they come, which need never be in memory together.
    """
    with replacing(path) as partial:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            with partial.open("w", encoding="utf-8", newline="") as file:
                file.writelines([content] if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file's place to write it under; at the end of the block it is moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # threads, too, may write one file at a time, such as a judge's verdict on two equal replies
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # or a full disk would stay full
        raise


def digest_of(path: Path) -> str:
    """Of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest_if_readable(path: Path) -> str:
    """Of a file's content; "" where it cannot be read."""
    try:
        return digest_of(path)
    except OSError:
        return ""
