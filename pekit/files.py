"""Writing files so that they are either whole or not there. Imports nothing of ours."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 240  # bytes; file systems take 255
NAME_KEPT = 40  # letters of a long name, so that what is added to it fits into the longest that there can be


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
    partial = path.with_name(f".{path.name[:NAME_KEPT]}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with naming(path):
            yield partial
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # or a full disk would stay full
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors that do not, as where there is no room to write."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process into such a block about the same folder, which is made as needed; else wait."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fitting(name: str) -> str:
    """A file's name before its suffix; where it is too long, its beginning and a digest of it."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name[:NAME_KEPT]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


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
