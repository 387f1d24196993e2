"""Stored reference views: the one owner of their paths, files, manifest, and of the gallery made from them.

Path of a view (the published one): ``<features_folder>/<dataset>/[multi_concept/]extracted_features/[gsam/]
<concept folder>/<photo stem>_<augmentation>.pt``; the untouched photo is augmentation 0.
"""

from __future__ import annotations

import io
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pekit.datasets import natural_key
from pekit.files import write_atomically
from pekit.records import Concept, Gallery, UserError, View

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def views_folder(features_folder: Path, dataset: str, multi_concept: bool, grounding_sam: bool) -> Path:
    """The folder that holds one folder of views per concept."""
    folder = features_folder / dataset
    if multi_concept:
        folder /= "multi_concept"
    folder /= "extracted_features"
    return folder / "gsam" if grounding_sam else folder


def view_file(folder: Path, concept: str, stem: str, augmentation: int) -> Path:
    """Path of one view inside ``views_folder``."""
    return folder / concept / f"{stem}_{augmentation}.pt"


# --- files --------------------------------------------------------------------------------------------------------


def save_view(path: Path, view: View) -> None:
    """Write a view: half-precision patches, the fp32 descriptor taken before rounding, and where it comes from.

    The names ``dino_obj_features``, ``class_label`` and ``img_path`` are the released code's.
    """
    content = {
        "dino_obj_features": torch.from_numpy(view.patches).half(),
        "descriptor": torch.from_numpy(view.descriptor.astype(np.float32)),
        "class_label": view.concept.replace("-", " "),
        "img_path": view.photo,
    }
    buffer = io.BytesIO()  # saved to a file, the archive would hold that file's name
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def _numpy_globals() -> list[Any]:
    """What numpy arrays need to be read from a checkpoint safely: array, dtype and the dtypes of plain numbers."""
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    numbers = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return [np.ndarray, np.dtype, rebuild, (rebuild, "numpy.core.multiarray._reconstruct"), *numbers]


def load_view(path: Path) -> View:
    """Read a view written by us or by the released code.

    Raises:
        UserError: the file is damaged, holds something unsafe, or lacks ``dino_obj_features``.
    """
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler meets in a damaged file
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(f"{path} cannot be read as a view ({reason}): delete it and run extraction.py again") from error
    if not isinstance(content, dict) or "dino_obj_features" not in content:
        raise UserError(f"{path} holds no dino_obj_features: it is no view; move it elsewhere")
    patches = np.asarray(content["dino_obj_features"])
    if "descriptor" in content:
        descriptor = np.asarray(content["descriptor"])
    elif len(patches):
        descriptor = patches.mean(0, dtype=np.float64).astype(np.float32)
    else:
        descriptor = np.zeros(patches.shape[1], dtype=np.float32)
    _, augmentation = split_name(path)
    return View(path.parent.name, str(content.get("img_path", "")), augmentation, patches, descriptor)


def split_name(path: Path) -> tuple[str, int]:
    """``v0_3.pt`` -> photo stem ``v0``, augmentation 3."""
    stem, _, number = path.stem.rpartition("_")
    if not stem or not number.isdigit():
        raise UserError(f"{path} is not named <photo stem>_<augmentation>.pt: rename it or move it elsewhere")
    return stem, int(number)


# --- manifest -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What the views of a folder were made with.

    Attributes:
        models: role -> name, revision and fingerprint of the checkpoint; "masks" only where SAM cut the masks.
        mask_kind: "box" or "sam".
        size: side S of the squashed picture in px.
        min_mask_area: smaller SAM masks were left empty, px.
        seed: seed of the augmentations.
        augmented: whether augmented views are among them.
        dtype: number format of the models.
        exif: whether EXIF orientation was applied.
        versions: versions of the libraries.
    """

    models: dict[str, dict]
    mask_kind: str
    size: int
    min_mask_area: int
    seed: int
    augmented: bool
    dtype: str
    exif: bool
    versions: dict[str, str]

    def difference(self, other: Manifest) -> str | None:
        """Name what keeps two sets of views from being mixed, this one's value first; None where nothing does."""
        for role in sorted(self.models.keys() & other.models.keys()):
            mine, theirs = self.models[role], other.models[role]
            known = mine["fingerprint"] and theirs["fingerprint"]
            if known and mine["fingerprint"] != theirs["fingerprint"]:
                one, other_one = (f"{model['source']} ({model['fingerprint']})" for model in (mine, theirs))
                return f"{role} model {one}, not {other_one}"
        for name in ("mask_kind", "size", "min_mask_area", "exif", "dtype"):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)}, not {getattr(other, name)}"
        if self.augmented and other.augmented and self.seed != other.seed:
            return f"augmentations of seed {self.seed}, not {other.seed}"
        return None

    def save(self, folder: Path) -> None:
        write_atomically(folder / MANIFEST, json.dumps(self.__dict__, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of views; None where there is none, as beside the released code's files."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        return Manifest(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): delete the folder and run extraction.py again") from error


# --- gallery ------------------------------------------------------------------------------------------------------


def choose_files(folder: Path, concept: str, variation: str, n_views: int, seed: int) -> list[Path]:
    """The view files in use for a concept: of ``n_views`` photos, drawn by seed where more are stored.

    ``normal`` takes the untouched photos, ``augment`` every augmentation of the photos drawn. A photo stored by the
    released code's ``normal`` run has the single view 1 and no view 0; that view is the untouched photo.

    Raises:
        UserError: the concept has no view.
    """
    stored: dict[str, dict[int, Path]] = {}
    own = folder / concept
    for path in sorted(own.glob("*.pt"), key=lambda path: natural_key(path.name)) if own.is_dir() else ():
        stem, augmentation = split_name(path)
        stored.setdefault(stem, {})[augmentation] = path
    if variation == "normal":
        stored = {stem: {0: f.get(0, f[min(f)])} for stem, f in stored.items() if 0 in f or set(f) == {1}}
    if not stored:
        raise UserError(
            f"no views of '{concept}' in {own}: run extraction.py first, with the same --dataset, --features_folder, "
            "--grounding_sam and --variation"
        )
    stems = list(stored)
    if len(stems) > n_views:
        draw = np.random.default_rng([seed, zlib.crc32(concept.encode())])
        stems = [stems[i] for i in sorted(draw.choice(len(stems), n_views, replace=False))]
    elif len(stems) < n_views:
        log.warning("%s has views of %d photos, fewer than the %d asked for", concept, len(stems), n_views)
    return [stored[stem][augmentation] for stem in stems for augmentation in sorted(stored[stem])]


def load_gallery(folder: Path, concepts: Sequence[Concept], variation: str, n_views: int, seed: int) -> Gallery:
    """Read the views in use of all concepts.

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
    files = [choose_files(folder, concept.key, variation, n_views, seed) for concept in concepts]
    descriptors = [[_descriptor(path) for path in own] for own in files]
    widths = {len(d) for own in descriptors for d in own if d is not None}
    if len(widths) > 1:
        raise UserError(
            f"{folder} mixes views of different models (widths {sorted(widths)}): run extraction.py --overwrite"
        )
    shape = (len(concepts), max(map(len, files)), widths.pop() if widths else 1)
    stacked, valid = np.zeros(shape, dtype=np.float32), np.zeros(shape[:2], dtype=bool)
    for c, own in enumerate(descriptors):
        for v, descriptor in enumerate(own):
            if descriptor is None:
                log.warning("%s has no patch under its mask: this view matches nothing", files[c][v])
            else:
                stacked[c, v], valid[c, v] = descriptor, True
    return Gallery(
        tuple(concepts),
        stacked,
        valid,
        tuple(path.relative_to(folder).as_posix() for own in files for path in own),
        {
            concept.key: frozenset(split_name(path)[0] for path in own)
            for concept, own in zip(concepts, files, strict=True)
        },
    )


def _descriptor(path: Path) -> np.ndarray | None:
    view = load_view(path)
    return np.array(view.descriptor, dtype=np.float32) if len(view.patches) else None
