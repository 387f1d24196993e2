"""Stored reference views: the one owner of their paths, files and manifest.

Path of a view (the published one): ``<features_folder>/<dataset>/[multi_concept/]extracted_features/[gsam/]
<concept folder>/<photo stem>_<augmentation>.pt``; the untouched photo is augmentation 0.

torch is imported where it is used: the scripts name the folder before they load any library.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pekit.files import write_atomically
from pekit.names import natural_key
from pekit.records import UserError, View, reason

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MASKED = "gsam"  # folder of the views cut out by SAM, beside those of the concepts


# --- paths --------------------------------------------------------------------------------------------------------


def views_folder(features_folder: Path, dataset: str, multi_concept: bool, grounding_sam: bool) -> Path:
    """The folder that holds one folder of views per concept."""
    folder = features_folder / dataset
    if multi_concept:
        folder /= "multi_concept"
    folder /= "extracted_features"
    return folder / MASKED if grounding_sam else folder


def check_stored(views: Path) -> None:
    """Refuse a folder, from ``views_folder``, that holds no view of any concept.

    Raises:
        UserError: it holds none.
    """
    if any(views.glob("*/*.pt")):
        return
    masked = views.name == MASKED
    other = views.parent if masked else views / MASKED
    if any(other.glob("*/*.pt")):
        raise UserError(f"no views are stored in {views}, but in {other}: give --grounding_sam {not masked}")
    raise UserError(
        f"no views are stored in {views}: run extraction.py first, with the same --dataset, --multi_concept and "
        "--grounding_sam, or check --features_folder"
    )


def view_name(concept: str, stem: str, augmentation: int) -> str:
    """Path of one view relative to ``views_folder``."""
    return f"{concept}/{stem}_{augmentation}.pt"


def view_file(folder: Path, concept: str, stem: str, augmentation: int) -> Path:
    """Path of one view."""
    return folder / view_name(concept, stem, augmentation)


def split_name(path: Path) -> tuple[str, int]:
    """``v0_3.pt`` -> photo stem ``v0``, augmentation 3."""
    stem, _, number = path.stem.rpartition("_")
    if not stem or not (number.isascii() and number.isdecimal()):
        raise UserError(f"{path} is not named <photo stem>_<augmentation>.pt: rename it or move it elsewhere")
    return stem, int(number)


def stored_views(folder: Path, concept: str) -> list[tuple[str, int]]:
    """Photo stem and augmentation of the views of a concept, photos in natural order of their names."""
    own = folder / concept
    if not own.is_dir():
        return []
    files = [entry.name for entry in os.scandir(own) if entry.name.endswith(".pt")]
    names = [split_name(own / name) for name in files if not name.startswith(".")]  # ._x_0.pt: what macOS leaves
    return sorted(names, key=lambda name: (natural_key(name[0]), name[1]))


# --- files --------------------------------------------------------------------------------------------------------


def save_view(path: Path, view: View) -> None:
    """Write a view: half-precision patches, the fp32 descriptor taken before rounding, and where it comes from.

    The names ``dino_obj_features``, ``class_label`` and ``img_path`` are the released code's.
    """
    import torch

    content = {
        "dino_obj_features": torch.from_numpy(view.patches).half(),
        "descriptor": torch.from_numpy(view.descriptor.astype(np.float32)),
        "class_label": view.concept.replace("-", " "),
        "img_path": view.photo,
        "img_digest": view.photo_digest,
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
        UserError: the file is damaged, holds something unsafe, or is no view.
    """
    import torch

    _, augmentation = split_name(path)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or "dino_obj_features" not in content:
            raise UserError(f"{path} holds no dino_obj_features: it is no view; move it elsewhere")
        patches = _array(content["dino_obj_features"])
        if "descriptor" in content:
            descriptor = _array(content["descriptor"])
        elif len(patches):
            descriptor = patches.mean(0, dtype=np.float64).astype(np.float32)
        else:
            descriptor = np.zeros(patches.shape[1], dtype=np.float32)
        photo, digest = (str(content.get(key, "")) for key in ("img_path", "img_digest"))
        return View(path.parent.name, photo, augmentation, patches, descriptor, digest)
    except UserError:
        raise
    except Exception as error:  # whatever the unpickler meets in a damaged file, or numpy in what is no array
        if isinstance(error, PermissionError):
            raise UserError(f"{path} may not be read: change its permissions") from None
        reason = _what_is_wrong(path, error)
        raise UserError(f"{path} cannot be read as a view ({reason}): delete it and run extraction.py again") from error


def _array(values: Any) -> np.ndarray:
    """The numbers of a tensor or array; bf16, which numpy does not know, as fp32.

    Raises:
        ValueError: they are no numbers.
    """
    import torch

    if isinstance(values, torch.Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype} in place of numbers")
    return array


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Why a file is no view, for users; torch's own messages advise programmers."""
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    if isinstance(error, pickle.UnpicklingError) and re.search("add_safe_globals|GLOBAL", str(error)):
        return "it holds more than numbers and text, which is not safe to load"
    torn = isinstance(error, OSError) and error.filename is None  # the reader looks for what lies beyond the end
    if torn or isinstance(error, (pickle.UnpicklingError, RuntimeError)):
        return "it is damaged or was not written by torch.save"
    return reason(error)


def load_descriptor(path: Path) -> np.ndarray:
    """The descriptor f32 (D,) of a view, zeros where it has no patches.

    Raises:
        UserError: as of ``load_view``, or its numbers are not finite.
    """
    view = load_view(path)
    if not len(view.patches):
        log.warning("%s has no patch under its mask: this view matches nothing", path)
    elif not np.isfinite(view.descriptor).all():
        raise UserError(f"{path} holds numbers that are not finite: delete it and run extraction.py again")
    return np.array(view.descriptor, dtype=np.float32)


def common_width(widths: set[int], folder: Path) -> int:
    """The width that all views have."""
    if len(widths) > 1:
        raise UserError(
            f"{folder} holds views of other models than the views before them (widths {sorted(widths)}): run "
            "extraction.py --overwrite, or move them elsewhere"
        )
    [width] = widths
    return width


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
        n_augment: the most augmentations that were made of a photo.
        split: that the photos are of; "" where the data set has none.
        dtype: number format of the models.
        exif: whether EXIF orientation was applied.
        versions: versions of the libraries.
        augmentation: which way of drawing augmentations made them, ``pictures.AUGMENTATION``.
    """

    models: dict[str, dict]
    mask_kind: str
    size: int
    min_mask_area: int
    seed: int
    n_augment: int
    split: str
    dtype: str
    exif: bool
    versions: dict[str, str]
    augmentation: int = 1  # manifests did not hold it then

    def difference(self, other: Manifest) -> str | None:
        """Why views made with ``other`` may not be added to these: the first value that differs; None where none does.

        In the text the value of these views comes first.
        """
        for role in sorted(self.models.keys() & other.models.keys()):
            mine, theirs = self.models[role], other.models[role]
            known = mine["fingerprint"] and theirs["fingerprint"]
            if known and mine["fingerprint"] != theirs["fingerprint"]:
                one, other_one = (f"{model['source']} ({model['fingerprint']})" for model in (mine, theirs))
                return f"{role} model {one}, not {other_one}"
        options = {"size": "--dino_img_size", "mask_kind": "masks by"}
        for name in ("split", "mask_kind", "size", "min_mask_area", "exif", "dtype"):
            if getattr(self, name) != getattr(other, name):
                return f"{options.get(name, f'--{name}')} {getattr(self, name)}, not {getattr(other, name)}"
        if self.n_augment and other.n_augment:
            if self.seed != other.seed:
                return f"augmentations of seed {self.seed}, not {other.seed}"
            if self.augmentation != other.augmentation:
                return "augmentations that another version of PeKit drew"
        if 0 < other.n_augment < self.n_augment:  # they would all be in use
            return f"{self.n_augment} augmentations of a photo, not {other.n_augment}"
        return None

    def save(self, folder: Path) -> None:
        write_atomically(folder / MANIFEST, json.dumps(self.__dict__, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of views; None where there is none, as beside the released code's files.

    Raises:
        UserError: it is damaged or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = Manifest(**json.loads(file.read_text(encoding="utf-8")))
        known = all(model.keys() >= {"source", "fingerprint"} for model in manifest.models.values())
        if not known or "features" not in manifest.models or not isinstance(manifest.n_augment, int):
            raise ValueError
        return manifest
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged or of another version: run extraction.py --overwrite") from None


# --- which are in use ---------------------------------------------------------------------------------------------


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
