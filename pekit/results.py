"""The one owner of result names: published .npy files, run folders, JSON and JSON lines."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

import numpy as np

from pekit.files import write_atomically
from pekit.records import UserError

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what flock says on some network file systems
PUBLISHED = {
    "precision": "precisions",
    "recall": "recalls",
    "neg_precision": "neg_precisions",
    "neg_recall": "neg_recalls",
}


def setting_name(dataset: str, multi_concept: bool, test_split: str | None) -> str:
    """``this-is-my-single-negative_hard``: the start of result names."""
    name = f"{dataset}-{'multi' if multi_concept else 'single'}"
    if test_split:
        name += "-" + re.sub(r"[()\[\]]", "", test_split.lower()).replace(" ", "_")
    return name


def npy_file(save_folder: Path, setting: str, metric: str, threshold: float, variation: str) -> Path:
    """The published file of one per-concept metric: ``…-<precisions|…>-<threshold>-<variation>.npy``."""
    return save_folder / f"{setting}-{PUBLISHED[metric]}-{threshold}-{variation}.npy"


def save_npy(path: Path, values: np.ndarray) -> None:
    """Write an array atomically."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_atomically(path, buffer.getvalue())


def new_run_folder(parent: Path, suffix: str = "") -> Path:
    """Make a folder that no other run has, named by the time so that names sort by it."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = parent / (stamp + (f"-{attempt}" if attempt else "") + suffix)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"no free run folder under {parent}")


def write_config(folder: Path, config: dict) -> None:
    """Write the ``config.json`` of a new run, whose folder goes again where there is no room for it."""
    try:
        write_json(folder / "config.json", config)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_config(folder: Path) -> dict:
    """The ``config.json`` of a run of vqa.py.

    Raises:
        UserError: the folder is none of a run.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        missing = {"argv", "working_folder", "settings", "questions"} - config.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder} is no folder of a run of vqa.py ({error}): name one that holds config.json"
        ) from None
    if missing:
        raise UserError(f"{folder}/config.json lacks {', '.join(sorted(missing))}: it is not that of a run of vqa.py")
    return config


_held: WeakSet[IO] = WeakSet()


def _let_go() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_let_go)  # loader workers outlive a process that is killed by some seconds


def claim(folder: Path) -> IO | None:
    """Hold a run folder for as long as the process lives, or the file returned is open.

    A file system that has no locks gives a warning; the folder is then taken to be free.

    Returns:
        The open lock file; None where another process holds the folder.
    """
    path = folder / ".lock"
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        while not _is_still(path, lock):  # who held it has ended, and removed it, since it was opened here
            lock.close()
            lock = path.open("w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s has no file locks (%s): do not run one command twice at a time", folder, error.strerror)
    _held.add(lock)
    return lock


def _is_still(path: Path, file: IO) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy numbers and arrays to Python's, paths to text, NaN and infinities to null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_atomically(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """One line of a .jsonl file."""
    return json.dumps(plain(value), ensure_ascii=False) + "\n"


def write_jsonl(path: Path, values: Iterable[Any]) -> None:
    """Write JSON lines atomically."""
    write_atomically(path, (json_line(value) for value in values))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Read JSON lines; a last line cut short by an interruption is left out."""
    with path.open("rb") as file:
        for _, value in _values(file):
            yield value


class StoredRecords:
    """The records in .jsonl files, by photo; each is read when it is asked for, so that all need no memory together.

    Args:
        files: a record counts in place of an earlier one of the same photo.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._places: dict[str, tuple[IO[bytes], int]] = {}
        with ExitStack() as opened:
            for path in files:
                file = opened.enter_context(path.open("rb"))
                self._places |= {record["photo"]: (file, place) for place, record in _values(file)}
            self._opened = opened.pop_all()

    def __getitem__(self, photo: str) -> dict:
        file, place = self._places[photo]
        file.seek(place)
        return json.loads(file.readline())

    def close(self) -> None:
        """Close the files."""
        self._opened.close()


def _values(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Where each line of an open .jsonl file begins, and its value.

    Raises:
        UserError: a line is damaged that is not the last.
    """
    place = 0
    for number, line in enumerate(file, 1):  # decoded line by line: the cut may lie inside a character
        try:
            yield place, json.loads(line.decode())
        except ValueError:
            if line.endswith(b"\n"):
                raise UserError(f"line {number} of {file.name} is damaged: remove it; it is made again") from None
        place += len(line)
