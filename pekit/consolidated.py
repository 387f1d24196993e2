"""One file for all views of a folder, memory-mapped: what a gallery of very many is read from.

``gallery.safetensors`` lies beside the views and holds their descriptors in fp16; it is written anew when a concept's
folder has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pekit.files import replacing
from pekit.names import natural_key
from pekit.records import Concept, Gallery
from pekit.views import MASKED, choose_views, common_width, load_descriptor, split_name, stored_views, view_name

log = logging.getLogger(__name__)

CONSOLIDATED = "gallery.safetensors"
LEFT_FOR = 24 * 3600  # seconds after which nobody can still be writing a file
_PER_VIEW = ("augmentations", "rows", "valid")
_TENSORS = ("names", "starts", *_PER_VIEW)


@dataclass(frozen=True)
class Consolidated:
    """The consolidated file, open.

    Attributes:
        folder: of the views.
        signature: of the views it was made from.
        concepts: concept -> its number.
        files: N view files, relative to the folder.
        starts: int64 (C + 1,), where each concept's rows begin.
        augmentations: int64 (N,).
        dated: concept -> when its folder was changed last, ns.
        rows: f16 (N, D), memory-mapped.
        valid: bool (N,), False for views without patches.
    """

    folder: Path
    signature: str
    concepts: dict[str, int]
    files: list[str]
    dated: dict[str, int]
    starts: np.ndarray
    augmentations: np.ndarray
    rows: np.ndarray
    valid: np.ndarray

    def gallery(
        self, concepts: Sequence[Concept], variation: str, n_views: int, seed: int
    ) -> tuple[Gallery, list[int]]:
        """The views in use, and of how many photos those of each concept are.

        Rows are not copied where all are in use in their order.
        """
        numbers = np.array([self.concepts.get(concept.key, -1) for concept in concepts])
        counts = np.diff(self.starts)
        augmented = np.concatenate([[0], np.cumsum(self.augmentations != 0)])[self.starts]
        # Most concepts of a large gallery have one view a photo and no more than are asked for.
        plain = (counts <= n_views) & (np.diff(augmented) == 0)
        if (numbers >= 0).all() and plain[numbers].all():
            used = photos = counts[numbers]
            offsets = np.arange(used.sum()) - np.repeat(np.cumsum(used) - used, used)
            flat = np.repeat(self.starts[numbers], used) + offsets
        else:
            places = [self._chosen(concept.key, variation, n_views, seed) for concept in concepts]
            used = np.array([len(own) for own in places])
            photos = np.array([len({split_name(Path(self.files[row]))[0] for row in own}) for own in places])
            flat = np.concatenate(places)
        whole = len(flat) == len(self.rows) and bool((np.diff(flat) == 1).all())
        rows, valid = (self.rows, self.valid) if whole else (self.rows[flat], self.valid[flat])
        files = tuple(self.files) if whole else tuple(self.files[row] for row in flat)
        own = "\n".join(f"{concept.key}\0{self.dated[concept.key]}" for concept in concepts)
        places = flat - np.repeat(self.starts[numbers], used)
        source = hashlib.sha256(own.encode() + places.tobytes()).hexdigest()
        return Gallery(tuple(concepts), *padded(rows, valid, used), files, source), photos.tolist()

    def span(self, concept: str) -> slice:
        """Rows of one concept; none where it is not among them."""
        number = self.concepts.get(concept)
        return slice(0, 0) if number is None else slice(*self.starts[number : number + 2].tolist())

    def _chosen(self, concept: str, variation: str, n_views: int, seed: int) -> np.ndarray:
        """Rows in use of one concept."""
        span = self.span(concept)
        stored = [split_name(Path(file)) for file in self.files[span]]
        return span.start + np.array(choose_views(stored, self.folder, concept, variation, n_views, seed))


def padded(rows: np.ndarray, valid: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put each concept's rows beside those of the others; where all have equally many, nothing is copied.

    Args:
        rows: float (N, D), concept by concept.
        valid: bool (N,).
        counts: int (C,), rows of each concept; V at most, N in all.

    Returns:
        The rows as (C, V, D), padded with zeros, and which are valid as (C, V), False for padding.
    """
    shape = (len(counts), int(counts.max()))
    if (counts == shape[1]).all():
        return rows.reshape(*shape, rows.shape[1]), valid.reshape(shape)
    there = np.arange(shape[1]) < counts[:, None]
    descriptors = np.zeros((*shape, rows.shape[1]), rows.dtype)
    descriptors[there] = rows
    there[there] = valid
    return descriptors, there


def _dated(folder: Path) -> dict[str, int]:
    """When each concept's views were changed last, ns: views are moved into place, which dates their folder."""
    return {
        entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder) if entry.is_dir() and entry.name != MASKED
    }


def _signature(dated: dict[str, int]) -> str:
    """Changes when a view is added, replaced or removed."""
    return hashlib.sha256("\n".join(f"{name}\0{dated[name]}" for name in sorted(dated)).encode()).hexdigest()


def open_consolidated(folder: Path) -> Consolidated:
    """Open the consolidated file, written first where it is missing or older than the views."""
    file, dated = folder / CONSOLIDATED, _dated(folder)
    signature, former = _signature(dated), None
    with suppress(OSError, SafetensorError, LookupError, ValueError, TypeError):  # not gathered yet, or damaged
        former = _open(file)
    if former and former.signature == signature:
        return former
    log.info("gathering the views of %s in %s", folder, file.name)
    tensors = _gather(folder, dated, former)
    # of processes that were killed; each may be large. The second is how safetensors names what it is writing.
    for leftover in (*folder.glob(f".{CONSOLIDATED}.*.partial"), *folder.glob(".tmp??????")):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFT_FOR:
                leftover.unlink()
    try:
        with replacing(file) as partial:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(tensors, partial, {"signature": signature})
            partial.chmod(mode)  # else it is its owner's alone
    except (OSError, SafetensorError) as error:  # the latter for what the system refuses, too
        log.warning("%s cannot be written (%s): the views are gathered anew in every run", file, error)
        return _index(folder, signature, tensors)
    return _open(file)


def _open(file: Path) -> Consolidated:
    with safe_open(file, framework="pt") as content:
        signature = (content.metadata() or {})["signature"]
        return _index(file.parent, signature, {name: content.get_tensor(name) for name in _TENSORS})


def _index(folder: Path, signature: str, tensors: dict[str, torch.Tensor]) -> Consolidated:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    names = json.loads(arrays.pop("names").tobytes())
    concepts = {concept: number for number, concept in enumerate(names["concepts"])}
    dated = dict(zip(names["concepts"], names["dated"], strict=True))
    starts, count = arrays["starts"], len(names["files"])
    if len(starts) != len(concepts) + 1 or {starts[-1], *(len(arrays[name]) for name in _PER_VIEW)} != {count}:
        raise ValueError(f"{folder / CONSOLIDATED} does not hold as many rows as it names")
    return Consolidated(folder, signature, concepts, names["files"], dated, **arrays)


def _gather(folder: Path, dated: dict[str, int], former: Consolidated | None) -> dict[str, torch.Tensor]:
    """What the consolidated file holds of all views of a folder.

    Args:
        folder: of the views.
        dated: from ``_dated``.
        former: what was gathered before, whose rows are taken where a concept's folder has not changed.
    """
    concepts = sorted(dated, key=natural_key)
    stored = {concept: views for concept in concepts if (views := stored_views(folder, concept))}
    files = [view_name(concept, *view) for concept, views in stored.items() for view in views]
    starts = np.cumsum([0, *map(len, stored.values())])
    rows = np.zeros((0, 0), np.float16)
    widths: set[int] = set()
    for concept, first, last in tqdm(
        zip(stored, starts, starts[1:], strict=False), total=len(stored), desc="gathering", unit="concept"
    ):
        if former and former.dated.get(concept) == dated[concept]:
            own: Any = former.rows[former.span(concept)]
        else:
            own = [load_descriptor(folder / file) for file in files[first:last]]
        widths |= set(map(len, own))
        width = common_width(widths, folder / concept)
        if not len(rows):
            rows = np.zeros((len(files), width), np.float16)  # one array, so that no second one is ever in memory
        rows[first:last] = own
    return {
        "rows": torch.from_numpy(rows),
        "valid": torch.from_numpy(rows.any(1)),
        "starts": torch.from_numpy(starts),
        "augmentations": torch.tensor([augmentation for views in stored.values() for _, augmentation in views]),
        "names": _names_tensor(list(stored), files, [dated[concept] for concept in stored]),
    }


def _names_tensor(concepts: Sequence[str], files: Sequence[str], dated: Sequence[int]) -> torch.Tensor:
    """What the rows are, as UTF-8 JSON in a tensor: the file's own header is read whole whenever it is opened."""
    names = json.dumps({"concepts": concepts, "files": files, "dated": dated})
    return torch.frombuffer(bytearray(names.encode()), dtype=torch.uint8)
