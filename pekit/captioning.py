"""Captions in place of answers: the photos that show known concepts, each with the same request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pekit.questions import Item, LeftOut, QuestionFile
from pekit.records import Concept, Photo, Question, UserError

REQUEST = "Please caption this image."


def caption_requests(photos: Sequence[Photo], concepts: Sequence[Concept], request: str, folder: Path) -> QuestionFile:
    """Ask for a caption of each photo.

    Args:
        photos: each with the concepts that it shows.
        concepts: those with views; photos that show any other are left out.
        request: what is asked of each photo; ``<sks>`` stands for the concepts' names.
        folder: where the photos lie.

    Returns:
        The requests as if they had been in one file; counted under the names of the photos' folders.

    Raises:
        UserError: no photo is left.
    """
    known = {concept.key for concept in concepts}
    digest = hashlib.sha256(request.encode())
    items: list[Item] = []
    left_out: list[LeftOut] = []
    for number, photo in enumerate(photos, start=1):
        subject = photo.path.parent.name
        if without := [key for key in photo.concepts if key not in known]:
            left_out.append(LeftOut(subject, photo.name, f"no views of {' and '.join(without)} are stored", number))
            continue
        digest.update(f"\0{number}\0{photo.name}\0{photo.concepts}".encode())
        items.append(Item(number, subject, Question(request, "<sks>", photo.concepts, photo.path, {}, photo.name)))
    if not items:
        raise UserError(f"no photo in {folder} shows only concepts that have views: run extraction.py first")
    return QuestionFile(folder, digest.hexdigest()[:16], tuple(items), tuple(left_out))
