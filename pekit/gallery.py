"""The gallery that proposals are matched to: which stored views are in use, and their descriptors as one array.

Few views are read from their own files, in fp32. Many (more than ``LARGE``) are read from ``gallery.safetensors``
beside them: memory-mapped, fp16, written anew when a concept's folder has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from pekit.datasets import natural_key
from pekit.files import write_atomically
from pekit.records import Concept, Gallery, UserError
from pekit.views import load_view, split_name, view_file, view_name

log = logging.getLogger(__name__)

CONSOLIDATED = "gallery.safetensors"
LARGE = 10_000  # views; reading that many files takes some seconds


def load_gallery(folder: Path, concepts: Sequence[Concept], variation: str, n_views: int, seed: int) -> Gallery:
    """Read the views in use of all concepts.

    ``normal`` takes the untouched photos, ``augment`` every augmentation; of each concept ``n_views`` photos, drawn by
    seed where more are stored.

    Args:
        folder: from ``views_folder``.
        concepts: C concepts, in reporting order.
        variation: "normal" or "augment".
        n_views: photos per concept.
        seed: of the draw where more are stored.

    Returns:
        The gallery; views without patches are there but not valid.

    Raises:
        UserError: a concept has no views, a file cannot be read, or widths differ.
    """
    index = _consolidated(folder) if _is_large(folder, concepts) else None
    stored = {c.key: index.views(c.key) if index else stored_views(folder, c.key) for c in concepts}
    chosen = {key: choose_views(views, folder / key, variation, n_views, seed) for key, views in stored.items()}
    photos = {key: frozenset(stored[key][place][0] for place in places) for key, places in chosen.items()}
    if few := [key for key, stems in photos.items() if len(stems) < n_views]:
        log.warning("%d concepts have views of fewer than %d photos, such as %s", len(few), n_views, few[0])
    names = [[view_name(key, *stored[key][place]) for place in places] for key, places in chosen.items()]
    descriptors, valid = index.gather(chosen) if index else _read(names, folder)
    return Gallery(tuple(concepts), descriptors, valid, tuple(name for own in names for name in own), photos)


# --- which views --------------------------------------------------------------------------------------------------


def stored_views(folder: Path, concept: str) -> list[tuple[str, int]]:
    """Photo stem and augmentation of the views of a concept, photos in natural order of their names."""
    own = folder / concept
    if not own.is_dir():
        return []
    names = [split_name(Path(entry)) for entry in os.scandir(own) if entry.name.endswith(".pt")]
    return sorted(names, key=lambda name: (natural_key(name[0]), name[1]))


def choose_views(views: Sequence[tuple[str, int]], own: Path, variation: str, n_views: int, seed: int) -> list[int]:
    """Places in ``views`` of those in use.

    The released code's ``normal`` run stores the untouched photo as view 1 and nothing else; where a concept has only
    such views, they are read.

    Raises:
        UserError: there is none.
    """
    if 0 < len(views) <= n_views and all(augmentation == 0 for _, augmentation in views):
        return list(range(len(views)))
    photos: dict[str, dict[int, int]] = {}
    for place, (stem, augmentation) in enumerate(views):
        photos.setdefault(stem, {})[augmentation] = place
    if variation == "normal":
        untouched = 1 if all(set(own_views) == {1} for own_views in photos.values()) else 0
        photos = {stem: {0: p[untouched]} for stem, p in photos.items() if untouched in p}
    if not photos:
        raise UserError(
            f"no views of '{own.name}' in {own}: run extraction.py first, with the same --dataset, --features_folder, "
            "--grounding_sam and --variation"
        )
    stems = list(photos)
    if len(stems) > n_views:
        draw = np.random.default_rng([seed, zlib.crc32(own.name.encode())])
        stems = [stems[i] for i in sorted(draw.choice(len(stems), n_views, replace=False))]
    return [place for stem in stems for _, place in sorted(photos[stem].items())]


# --- from the views' own files ------------------------------------------------------------------------------------


def _read(names: Sequence[Sequence[str]], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors f32 (C, V, D) and valid bool (C, V)."""
    return _padded([[_descriptor(folder / name) for name in own] for own in names], folder)


def _descriptor(path: Path) -> np.ndarray:
    view = load_view(path)
    if not len(view.patches):
        log.warning("%s has no patch under its mask: this view matches nothing", path)
    return np.array(view.descriptor, dtype=np.float32)


def _padded(rows: Sequence[Sequence[np.ndarray]], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of C concepts to arrays (C, V, D) and bool (C, V); a row of zeros is a view without patches."""
    widths = {len(row) for own in rows for row in own}
    if len(widths) > 1:
        raise UserError(
            f"{folder} mixes views of different models (widths {sorted(widths)}): run extraction.py --overwrite"
        )
    shape = (len(rows), max(map(len, rows)), widths.pop())
    stacked, valid = np.zeros(shape, dtype=rows[0][0].dtype), np.zeros(shape[:2], dtype=bool)
    for c, own in enumerate(rows):
        stacked[c, : len(own)] = own
        valid[c, : len(own)] = stacked[c, : len(own)].any(1)
    return stacked, valid


def _width(rows: Sequence[np.ndarray], folder: Path) -> int:
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise UserError(f"{folder} mixes views of different models (widths {widths}): run extraction.py --overwrite")
    return widths[0]


# --- from one file for all ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """The consolidated file, open.

    Attributes:
        names: concept -> its number.
        stored: per concept, photo stem and augmentation of its views.
        starts: int64 (C + 1,), where each concept's rows begin.
        rows: f16 (N, D), memory-mapped.
        valid: bool (N,), False for views without patches.
    """

    folder: Path
    names: dict[str, int]
    stored: list[list[tuple[str, int]]]
    starts: np.ndarray
    rows: np.ndarray
    valid: np.ndarray

    def views(self, concept: str) -> list[tuple[str, int]]:
        number = self.names.get(concept)
        return [] if number is None else self.stored[number]

    def gather(self, chosen: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors f16 (C, V, D), not copied where all rows are in use in their order, and valid bool (C, V)."""
        places = [self.starts[self.names[key]] + np.array(own) for key, own in chosen.items()]
        flat = np.concatenate(places)
        if len({len(own) for own in places}) > 1:
            return _padded([self.rows[own] for own in places], self.folder)  # type: ignore[arg-type]
        whole = len(flat) == len(self.rows) and bool((np.diff(flat) == 1).all())
        taken = self.rows if whole else self.rows[flat]
        return taken.reshape(len(places), -1, self.rows.shape[1]), self.valid[flat].reshape(len(places), -1)


def _is_large(folder: Path, concepts: Sequence[Concept]) -> bool:
    """Whether the concepts have more than ``LARGE`` views; stops counting there."""
    if (folder / CONSOLIDATED).is_file():
        return True
    count = 0
    for concept in concepts:
        own = folder / concept.key
        count += sum(entry.name.endswith(".pt") for entry in os.scandir(own)) if own.is_dir() else 0
        if count > LARGE:
            return True
    return False


def _signature(folder: Path) -> str:
    """Changes when a view is added, replaced or removed: views are moved into place, which dates their folder."""
    dated = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(folder) if entry.is_dir())
    return hashlib.sha256(json.dumps(dated).encode()).hexdigest()


def _consolidated(folder: Path) -> _Index:
    """Open the consolidated file, written first where it is missing or older than the views."""
    file, signature = folder / CONSOLIDATED, _signature(folder)
    try:
        return _open(file, signature)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        log.info("gathering the views of %s in %s", folder, file.name)
    _write(file, folder, signature)
    return _open(file, signature)


def _open(file: Path, signature: str) -> _Index:
    with safe_open(file, framework="pt") as content:
        if (content.metadata() or {}).get("signature") != signature:
            raise ValueError("out of date")
        names = json.loads(content.get_tensor("names").numpy().tobytes())
        starts, rows, valid = (content.get_tensor(name).numpy() for name in ("starts", "rows", "valid"))
    concepts, stems, augmentations = names["concepts"], names["stems"], names["augmentations"]
    stored = [
        list(zip(stems[first:last], augmentations[first:last], strict=True))
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    return _Index(file.parent, {concept: i for i, concept in enumerate(concepts)}, stored, starts, rows, valid)


def _write(file: Path, folder: Path, signature: str) -> None:
    concepts = sorted((entry.name for entry in os.scandir(folder) if entry.is_dir()), key=natural_key)
    stored = {concept: views for concept in concepts if (views := stored_views(folder, concept))}
    rows = [
        _descriptor(view_file(folder, concept, *view)).astype(np.float16)
        for concept, views in tqdm(stored.items(), desc="gathering", unit="concept")
        for view in views
    ]
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise UserError(
            f"{folder} mixes views of different models (widths {sorted(widths)}): run extraction.py --overwrite"
        )
    flat = [view for views in stored.values() for view in views]
    stacked = np.stack(rows)
    tensors = {
        "rows": torch.from_numpy(stacked),
        "valid": torch.from_numpy(stacked.any(1)),
        "starts": torch.from_numpy(np.cumsum([0, *map(len, stored.values())])),
        "names": _names_tensor(list(stored), [stem for stem, _ in flat], [augmentation for _, augmentation in flat]),
    }
    write_atomically(file, save(tensors, {"signature": signature}))


def _names_tensor(concepts: Sequence[str], stems: Sequence[str], augmentations: Sequence[int]) -> torch.Tensor:
    """What the rows are, as UTF-8 JSON in a tensor: the file's own header is read whole whenever it is opened."""
    names = {"concepts": concepts, "stems": stems, "augmentations": augmentations}
    return torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
