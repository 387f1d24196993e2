"""The gallery that proposals are matched to: which stored views are in use, and their descriptors as one array.

Few views are read from their own files, in fp32. Many (more than ``LARGE``) are read from ``gallery.safetensors``
beside them: memory-mapped, fp16, written anew when a concept's folder has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections import Counter
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
from pekit.records import Concept, Gallery, UserError, counted
from pekit.views import MANIFEST, MASKED, load_view, split_name, stored_views, view_name

log = logging.getLogger(__name__)

CONSOLIDATED = "gallery.safetensors"
LEFT_FOR = 24 * 3600  # seconds after which nobody can still be writing a file
LARGE = 10_000  # views; reading that many files takes some seconds
_PER_VIEW = ("augmentations", "rows", "valid")
_TENSORS = ("names", "starts", *_PER_VIEW)


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
        UserError: a concept has no views, none is augmented where they are to be, a file cannot be read, or widths
            differ.
    """
    if _is_large(folder, concepts):
        gallery = _consolidated(folder).gallery(concepts, variation, n_views, seed)
    else:
        gallery = _from_files(folder, concepts, variation, n_views, seed)
    if variation == "augment":
        _check_augmentations(gallery.files, folder)
    return gallery


def _from_files(folder: Path, concepts: Sequence[Concept], variation: str, n_views: int, seed: int) -> Gallery:
    """``load_gallery`` from the views' own files."""
    stored = {concept.key: stored_views(folder, concept.key) for concept in concepts}
    chosen = {key: choose_views(views, folder, key, variation, n_views, seed) for key, views in stored.items()}
    _warn_of_few({key: len({stored[key][place][0] for place in own}) for key, own in chosen.items()}, n_views)
    names = [[view_name(key, *stored[key][place]) for place in places] for key, places in chosen.items()]
    descriptors, valid = _padded([[_descriptor(folder / name) for name in own] for own in names], folder)
    return Gallery(tuple(concepts), descriptors, valid, tuple(name for own in names for name in own))


def photo_stems(gallery: Gallery) -> dict[str, set[str]]:
    """Stems of the photos that a gallery's views come from, by concept."""
    stems: dict[str, set[str]] = {key: set() for key in gallery.keys}
    for file in map(Path, gallery.files):
        stems[file.parent.name].add(split_name(file)[0])
    return stems


def identity(gallery: Gallery) -> dict:
    """What tells whether two runs match to the same views, and which they are, unless there are too many to list."""
    # Mapped from one file, the arrays would take longer to read than that file's own digest.
    digest = hashlib.sha256(gallery.source.encode())
    if not gallery.source:
        digest.update(gallery.descriptors.tobytes() + gallery.valid.tobytes())
    listed = list(gallery.files) if len(gallery.files) <= LARGE else f"{len(gallery.files)} views"
    return {"views": listed, "views_digest": digest.hexdigest()[:16]}


def digests(gallery: Gallery) -> dict[str, str]:
    """What tells, for each concept by itself, whether two runs match to the same views."""
    pairs = zip(gallery.keys, gallery.descriptors, gallery.valid, strict=True)
    with np.errstate(over="ignore"):  # fp16 as in the file of a large gallery, so that growing to one changes nothing
        return {key: hashlib.sha256(rows[valid].astype(np.float16)).hexdigest()[:16] for key, rows, valid in pairs}


def _warn_of_few(photos: dict[str, int], n_views: int) -> None:
    """Say how many concepts have fewer photos than asked for."""
    if few := [key for key, count in photos.items() if count < n_views]:
        log.warning("%s with views of fewer than %s, such as %s",
                    counted(len(few), "concept"), counted(n_views, "photo"), few[0])  # fmt: skip


def _check_augmentations(files: Sequence[str], folder: Path) -> None:
    """Refuse a gallery "with augmentations" that has none; say where some photos have fewer than others."""
    of_photo = Counter(file.rpartition("_")[0] for file in files)
    most = max(of_photo.values())
    ours = (folder / MANIFEST).is_file()  # extraction.py adds nothing to views of the released code
    if most == 1:
        into = "first" if ours else "into another --features_folder"
        raise UserError(
            f"{folder} holds no augmented views: run extraction.py --variation augment {into}, or leave the option out"
        )
    if few := [photo for photo, count in of_photo.items() if count < most]:
        log.warning(
            "%d of %d photos have fewer than %d views, such as %s: %s",
            len(few),
            len(of_photo),
            most,
            few[0],
            "run the same extraction.py --variation augment again to make what is missing"
            if ours
            else f"they are used as they are; without {MANIFEST} beside them, extraction.py adds none",
        )


# --- which views --------------------------------------------------------------------------------------------------


def choose_views(
    views: Sequence[tuple[str, int]], folder: Path, concept: str, variation: str, n_views: int, seed: int
) -> list[int]:
    """Places in ``views`` of a concept of those in use.

    The released code's ``normal`` run stores the untouched photo as view 1 and nothing else: without a manifest beside
    the views, such a photo is read. With one, a lone view 1 is what is left of an augmented photo.

    Raises:
        UserError: there is none.
    """
    if 0 < len(views) <= n_views and all(augmentation == 0 for _, augmentation in views):
        return list(range(len(views)))
    photos: dict[str, dict[int, int]] = {}
    for place, (stem, augmentation) in enumerate(views):
        photos.setdefault(stem, {})[augmentation] = place
    if variation == "normal":
        number = {stem: int(set(own) == {1} and not (folder / MANIFEST).is_file()) for stem, own in photos.items()}
        photos = {stem: {0: own[number[stem]]} for stem, own in photos.items() if number[stem] in own}
    if not photos:
        raise UserError(
            f"no views of '{concept}' in {folder / concept}: run extraction.py first, with the same --dataset, "
            "--features_folder, --grounding_sam and --variation (it names photos that it cannot read)"
        )
    stems = list(photos)
    if len(stems) > n_views:
        draw = np.random.default_rng([seed, zlib.crc32(concept.encode())])
        stems = [stems[i] for i in sorted(draw.choice(len(stems), n_views, replace=False))]
    return [place for stem in stems for _, place in sorted(photos[stem].items())]


# --- from the views' own files ------------------------------------------------------------------------------------


def _descriptor(path: Path) -> np.ndarray:
    view = load_view(path)
    if not len(view.patches):
        log.warning("%s has no patch under its mask: this view matches nothing", path)
    elif not np.isfinite(view.descriptor).all():
        raise UserError(f"{path} holds numbers that are not finite: delete it and run extraction.py again")
    return np.array(view.descriptor, dtype=np.float32)


def _padded(rows: Sequence[Sequence[np.ndarray]], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows f32 (D,) of C concepts to f32 (C, V, D) and bool (C, V); a row of zeros is a view without patches."""
    width = _one_of({len(row) for own in rows for row in own}, folder)
    shape = (len(rows), max(map(len, rows)), width)
    stacked, valid = np.zeros(shape, dtype=np.float32), np.zeros(shape[:2], dtype=bool)
    for c, own in enumerate(rows):
        stacked[c, : len(own)] = own
        valid[c, : len(own)] = stacked[c, : len(own)].any(1)
    return stacked, valid


def _one_of(widths: set[int], folder: Path) -> int:
    """The width that all views have."""
    if len(widths) > 1:
        raise UserError(
            f"{folder} holds views of other models than the views before them (widths {sorted(widths)}): run "
            "extraction.py --overwrite, or move them elsewhere"
        )
    [width] = widths
    return width


# --- from one file for all ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
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

    def gallery(self, concepts: Sequence[Concept], variation: str, n_views: int, seed: int) -> Gallery:
        """The views in use; rows are not copied where all are in use in their order."""
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
        if (photos < n_views).any():
            _warn_of_few(dict(zip((concept.key for concept in concepts), photos.tolist(), strict=True)), n_views)
        whole = len(flat) == len(self.rows) and bool((np.diff(flat) == 1).all())
        rows, valid = (self.rows, self.valid) if whole else (self.rows[flat], self.valid[flat])
        files = tuple(self.files) if whole else tuple(self.files[row] for row in flat)
        if (used == used[0]).all():
            shape = (len(concepts), int(used[0]))
            descriptors, valid = rows.reshape(*shape, -1), valid.reshape(shape)
        else:
            shape = (len(concepts), int(used.max()))
            there = np.arange(shape[1]) < used[:, None]
            descriptors = np.zeros((*shape, rows.shape[1]), rows.dtype)
            descriptors[there] = rows
            there[there] = valid
            valid = there
        own = "\n".join(f"{concept.key}\0{self.dated[concept.key]}" for concept in concepts)
        places = flat - np.repeat(self.starts[numbers], used)
        source = hashlib.sha256(own.encode() + places.tobytes()).hexdigest()
        return Gallery(tuple(concepts), descriptors, valid, files, source)

    def span(self, concept: str) -> slice:
        """Rows of one concept; none where it is not among them."""
        number = self.concepts.get(concept)
        return slice(0, 0) if number is None else slice(*self.starts[number : number + 2].tolist())

    def _chosen(self, concept: str, variation: str, n_views: int, seed: int) -> np.ndarray:
        """Rows in use of one concept."""
        span = self.span(concept)
        stored = [split_name(Path(file)) for file in self.files[span]]
        return span.start + np.array(choose_views(stored, self.folder, concept, variation, n_views, seed))


def _is_large(folder: Path, concepts: Sequence[Concept]) -> bool:
    """Whether the concepts have more than ``LARGE`` views; stops counting there."""
    count = 0
    for concept in concepts:
        own = folder / concept.key
        count += sum(entry.name.endswith(".pt") for entry in os.scandir(own)) if own.is_dir() else 0
        if count > LARGE:
            return True
    return False


def _dated(folder: Path) -> dict[str, int]:
    """When each concept's views were changed last, ns: views are moved into place, which dates their folder."""
    return {
        entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder) if entry.is_dir() and entry.name != MASKED
    }


def _signature(dated: dict[str, int]) -> str:
    """Changes when a view is added, replaced or removed."""
    return hashlib.sha256("\n".join(f"{name}\0{dated[name]}" for name in sorted(dated)).encode()).hexdigest()


def _consolidated(folder: Path) -> _Index:
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


def _open(file: Path) -> _Index:
    with safe_open(file, framework="pt") as content:
        signature = (content.metadata() or {})["signature"]
        return _index(file.parent, signature, {name: content.get_tensor(name) for name in _TENSORS})


def _index(folder: Path, signature: str, tensors: dict[str, torch.Tensor]) -> _Index:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    names = json.loads(arrays.pop("names").tobytes())
    concepts = {concept: number for number, concept in enumerate(names["concepts"])}
    dated = dict(zip(names["concepts"], names["dated"], strict=True))
    starts, count = arrays["starts"], len(names["files"])
    if len(starts) != len(concepts) + 1 or {starts[-1], *(len(arrays[name]) for name in _PER_VIEW)} != {count}:
        raise ValueError(f"{folder / CONSOLIDATED} does not hold as many rows as it names")
    return _Index(folder, signature, concepts, names["files"], dated, **arrays)


def _gather(folder: Path, dated: dict[str, int], former: _Index | None) -> dict[str, torch.Tensor]:
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
            own = [_descriptor(folder / file) for file in files[first:last]]
        widths |= set(map(len, own))
        width = _one_of(widths, folder / concept)
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
