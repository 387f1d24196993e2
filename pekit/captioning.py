"""Captions in place of answers: the photos that show known concepts, each with the same request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pekit.questions import UNKNOWN_CONCEPT, Item, LeftOut, QuestionFile
from pekit.records import Concept, Photo, Question, UserError

REQUEST = "Please caption this image."


def caption_requests(photos: Sequence[Photo], concepts: Sequence[Concept], request: str, folder: Path) -> QuestionFile:
    """Ask for a caption of each photo.

    Args:
        photos: each with the concepts that it shows.
        concepts: those with views; photos that show others are left out.
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
        if not known.issuperset(photo.concepts):
            left_out.append(LeftOut(subject, photo.name, UNKNOWN_CONCEPT, number))
            continue
        digest.update(f"\0{photo.name}".encode())
        items.append(Item(number, subject, Question(request, "<sks>", photo.concepts, photo.path, {}, photo.name)))
    if not items:
        raise UserError(f"none of the photos in {folder} shows a concept with views: run extraction.py first")
    return QuestionFile(folder, digest.hexdigest()[:16], tuple(items), tuple(left_out))
