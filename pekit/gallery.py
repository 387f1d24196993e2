"""The gallery that proposals are matched to: which stored views are in use, and their descriptors as one array.

Few views are read from their own files, in fp32; more than ``LARGE`` from one file for all, in fp16.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pekit.consolidated import open_consolidated, padded
from pekit.records import Concept, Gallery, LoadingSettings, ModelSettings, Photo, UserError, counted
from pekit.views import (
    MANIFEST,
    choose_views,
    common_width,
    load_descriptor,
    read_manifest,
    split_name,
    stored_views,
    view_name,
)

log = logging.getLogger(__name__)

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
        UserError: a concept has no views, none is augmented where they are to be, a file cannot be read, or widths
            differ.
    """
    if _is_large(folder, concepts):
        gallery, photos = open_consolidated(folder).gallery(concepts, variation, n_views, seed)
    else:
        gallery, photos = _from_files(folder, concepts, variation, n_views, seed)
    if few := [key for key, count in zip(gallery.keys, photos, strict=True) if count < n_views]:
        log.warning("%s with views of fewer than %s, such as %s",
                    counted(len(few), "concept"), counted(n_views, "photo"), few[0])  # fmt: skip
    if variation == "augment":
        _check_augmentations(gallery.files, folder)
    return gallery


def _from_files(
    folder: Path, concepts: Sequence[Concept], variation: str, n_views: int, seed: int
) -> tuple[Gallery, list[int]]:
    """The gallery from the views' own files, and of how many photos the views of each concept are."""
    files, counts, photos = [], [], []
    for concept in concepts:
        stored = stored_views(folder, concept.key)
        chosen = [stored[place] for place in choose_views(stored, folder, concept.key, variation, n_views, seed)]
        files += [view_name(concept.key, *view) for view in chosen]
        counts.append(len(chosen))
        photos.append(len({stem for stem, _ in chosen}))
    rows = [load_descriptor(folder / file) for file in files]
    common_width(set(map(len, rows)), folder)
    stacked = np.stack(rows)
    descriptors, valid = padded(stacked, np.asarray(stacked.any(1)), np.array(counts))
    return Gallery(tuple(concepts), descriptors, valid, tuple(files)), photos


def _is_large(folder: Path, concepts: Sequence[Concept]) -> bool:
    """Whether the concepts have more than ``LARGE`` views; stops counting there."""
    count = 0
    for concept in concepts:
        own = folder / concept.key
        count += sum(entry.name.endswith(".pt") for entry in os.scandir(own)) if own.is_dir() else 0
        if count > LARGE:
            return True
    return False


def photo_stems(gallery: Gallery) -> dict[str, set[str]]:
    """Stems of the photos that a gallery's views come from, by concept."""
    stems: dict[str, set[str]] = {key: set() for key in gallery.keys}
    for file in map(Path, gallery.files):
        stems[file.parent.name].add(split_name(file)[0])
    return stems


def identity(gallery: Gallery) -> dict:
    """The views in use and a digest of them, equal where two runs use the same; of very many only their number."""
    # Mapped from one file, the arrays would take longer to read than that file's own digest.
    digest = hashlib.sha256(gallery.source.encode())
    if not gallery.source:
        digest.update(gallery.descriptors.tobytes() + gallery.valid.tobytes())
    listed = list(gallery.files) if len(gallery.files) <= LARGE else f"{len(gallery.files)} views"
    return {"views": listed, "views_digest": digest.hexdigest()[:16]}


def digests(gallery: Gallery) -> dict[str, str]:
    """A digest of each concept's views, equal where two runs use the same."""
    pairs = zip(gallery.keys, gallery.descriptors, gallery.valid, strict=True)
    with np.errstate(over="ignore"):  # fp16 as in the file of a large gallery, so that growing to one changes nothing
        return {key: hashlib.sha256(rows[valid].astype(np.float16)).hexdigest()[:16] for key, rows, valid in pairs}


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


def check_views(
    folder: Path, sources: dict[str, dict], models: ModelSettings, loading: LoadingSettings, split: str = ""
) -> None:
    """Views and query photos must go through the same DINOv2 at the same size; those of one split are told."""
    manifest = read_manifest(folder)
    if manifest is None:
        log.warning("%s has no manifest: taking its views to be of %s", folder, models.features)
        return
    stored, mine = manifest.models["features"], sources["features"]
    if stored["fingerprint"] and mine["fingerprint"] and stored["fingerprint"] != mine["fingerprint"]:
        raise UserError(
            f"{folder} holds views of {stored['source']} ({stored['fingerprint']}), not of {mine['source']} "
            f"({mine['fingerprint']}): give the same --dino_model, or run extraction.py into another --features_folder"
        )
    if manifest.size != models.size:
        raise UserError(
            f"{folder} holds views at --dino_img_size {manifest.size}, not {models.size}: give the same size"
        )
    for role, name in (("grounding", "grounding model"), ("masks", "SAM model")):
        if (
            role in manifest.models
            and role in sources
            and manifest.models[role]["fingerprint"] != sources[role]["fingerprint"]
        ):
            log.warning("the views were made with the %s %s", name, manifest.models[role]["source"])
    if split and manifest.split == split:
        log.warning("the views are of --split %s, too: photos are compared with themselves", split)
    if manifest.exif != loading.exif:
        log.warning(
            "the views were made with --exif %s: give the same, or extraction.py --exif %s --overwrite",
            manifest.exif,
            loading.exif,
        )
    if manifest.dtype != models.dtype:
        log.warning("the views were made with --dtype %s, which gives slightly other similarities", manifest.dtype)


def without_references(photos: Sequence[Photo], gallery: Gallery) -> list[Photo]:
    """The photos to test on where the data set, such as myvlm, has no split: all but those of the views in use.

    Raises:
        UserError: there are no others.
    """
    stems = photo_stems(gallery)
    kept = [photo for photo in photos if photo.path.stem not in stems.get(photo.concepts[0], ())]
    there = {(photo.concepts[0], photo.path.stem) for photo in photos}
    if gone := [(key, stem) for key, own in stems.items() for stem in own if (key, stem) not in there]:
        log.warning(
            "%s in use of photos that are not there, such as %s of %s: if they were renamed, they are compared with "
            "themselves; run extraction.py again",
            counted(len(gone), "view"),
            *reversed(gone[0]),
        )
    if not kept:
        raise UserError(
            f"no photo is left beside the reference photos ({counted(len(photos), 'photo')}): give a smaller "
            "--n_training_views, or add photos"
        )
    return kept
