"""Captions in place of answers: the photos that show known concepts, each with the same request."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from pekit.questions import MISSING_PHOTO, Item, LeftOut, QuestionFile
from pekit.records import Concept, Photo, Question, UserError

log = logging.getLogger(__name__)

REQUEST = "Please caption this image."


def caption_requests(
    photos: Sequence[Photo], concepts: Sequence[Concept], request: str, folder: Path, begun: Sequence[str] = ()
) -> QuestionFile:
    """Ask for a caption of each photo.

    Args:
        photos: each with the concepts that it shows.
        concepts: those with views; photos that show any other are left out.
        request: what is asked of each photo; ``<sks>`` stands for the concepts' names.
        folder: where the photos lie.
        begun: names of the photos of the run to go on with; others are not asked about.

    Returns:
        The requests as if they had been in one file; counted under the names of the photos' folders.

    Raises:
        UserError: no photo is left.
    """
    known = {concept.key for concept in concepts}
    by_name = {photo.name: photo for photo in photos}
    names = tuple(begun or by_name)
    if new := by_name.keys() - set(names):
        count = "1 photo was" if len(new) == 1 else f"{len(new)} photos were"
        log.warning("%s not there when the run began, such as %s: the run keeps to those it had", count, min(new))
    items: list[Item] = []
    left_out: list[LeftOut] = []
    for number, name in enumerate(names, start=1):
        photo = by_name.get(name)
        if photo is None:
            left_out.append(LeftOut(Path(name).parent.name, name, MISSING_PHOTO, number))
            continue
        subject = photo.path.parent.name
        if without := [key for key in photo.concepts if key not in known]:
            left_out.append(LeftOut(subject, name, f"no views of {' and '.join(without)} are stored", number))
            continue
        items.append(Item(number, subject, Question(request, "<sks>", photo.concepts, photo.path, {}, name)))
    if not items:
        raise UserError(
            f"no photo in {folder} shows only concepts that have views: run extraction.py first, or check the folders' "
            "names"
        )
    digest = hashlib.sha256("\0".join([request, *names]).encode()).hexdigest()[:16]
    return QuestionFile(folder, digest, tuple(items), tuple(left_out), names)
