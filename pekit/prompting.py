"""Boxes on a copy of the photo, and the wording of questions (method, step 7). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageColor, ImageDraw, ImageFont

from pekit.names import folded, name_map, without_category
from pekit.records import Concept, Detection

COLOURS = ("blue", "red", "green", "purple", "orange", "pink", "gray", "yellow")
LINE_WIDTH = 10  # px of the full-size photo


@dataclass(frozen=True)
class Task:
    """What is asked, and how.

    Attributes:
        name: as ``--task`` takes it.
        personalised: outline and name the concepts; without it, the question alone is asked.
        invented: the released invented names in place of the display names.
        others: how many other concepts of the gallery are outlined and named besides those asked about.
        text_only: a description of the concept in place of the photo.
        captions: a caption is asked for, of every photo of the concepts; there is no question file.
    """

    name: str
    personalised: bool = True
    invented: bool = False
    others: int = 0
    text_only: bool = False
    captions: bool = False


_PERSONALISED = (
    Task("vqa"),
    Task("vqa_names", invented=True),
    Task("vqa_names_ambiguity", invented=True, others=1),
    Task("vqa_names_ambiguity_full", invented=True, others=len(COLOURS)),
)
TASKS = {
    task.name: task
    for task in (
        *_PERSONALISED,
        *(Task(f"base_vlm_{task.name}", personalised=False, invented=task.invented) for task in _PERSONALISED),
        Task("tqa", text_only=True),
        Task("captioning", captions=True),
    )
}


# --- boxes --------------------------------------------------------------------------------------------------------


def draw_boxes(image: Image.Image, detections: Sequence[Detection], labels: Sequence[str] = ()) -> Image.Image:
    """Outline regions on a copy of a photo, in the order of ``COLOURS``.

    Args:
        image: RGB, at its own size.
        detections: regions; boxes in [0, 1].
        labels: what is written at each, for people; an LVLM is shown none.

    Returns:
        The copy.
    """
    overlay = image.copy()
    pen = ImageDraw.Draw(overlay)
    placed = []
    for i, detection in enumerate(detections):
        x0, y0, x1, y1 = detection.box_xyxyn
        corners = [int(x0 * image.width), int(y0 * image.height), int(x1 * image.width), int(y1 * image.height)]
        pen.rectangle(corners, outline=COLOURS[i % len(COLOURS)], width=LINE_WIDTH)
        placed.append(corners)
    for i, label in enumerate(labels):  # above all outlines
        _write(pen, label, placed[i], COLOURS[i % len(COLOURS)], image.size)
    return overlay


def _write(pen: ImageDraw.ImageDraw, label: str, corners: Sequence[int], colour: str, room: tuple[int, int]) -> None:
    """Write on a ground of a box's colour: above the box, or in it where there is no room above."""
    letters = max(12, min(room) // 30)
    while pen.textlength(label, ImageFont.load_default(letters)) + letters // 2 > room[0] and letters > 6:
        letters -= 1
    font = ImageFont.load_default(letters)
    left, top, right, bottom = pen.textbbox((0, 0), label, font)
    margin = letters // 4
    width, height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    x = max(0, min(corners[0], room[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "white"
    pen.text((x + margin - left, y + margin - top), label, ink, font)


# --- names --------------------------------------------------------------------------------------------------------


def shown_names(concepts: Sequence[Concept], invented: bool) -> dict[str, str]:
    """Concept key -> the name the LVLM is told: the display name, or the released invented one where there is one."""
    made_up = name_map("invented") if invented else {}
    return {concept.key: made_up.get(without_category(concept.key), concept.name) for concept in concepts}


class Wording:
    """Puts names into the texts of question files.

    Args:
        concepts: those known by name.
        invented: tell the invented names; they also replace the display names that texts spell out.
    """

    def __init__(self, concepts: Sequence[Concept], invented: bool = False) -> None:
        self.names = shown_names(concepts, invented)
        # All of them: a text may speak of a concept beside the ones that are known.
        self._renamed = {folded(name): made_up for name, made_up in name_map("invented").items()} if invented else {}
        letters = ("['\u2019]?".join(map(re.escape, spelling)) for spelling in self._renamed)
        self._spelled = re.compile(rf"\b({'|'.join(letters)})\b", re.IGNORECASE) if invented else None

    def name(self, key: str) -> str:
        """The name of a concept; the key itself for an unknown one."""
        return self.names.get(key, key)

    def fill(self, text: str, keys: Sequence[str]) -> str:
        """Replace ``<sks>`` and ``sks`` by the names of the concepts asked about, ``<sks1>``, ``<sks2>`` by one each.

        Args:
            text: of a question, an option or an answer.
            keys: concepts asked about.
        """
        names = [self.name(key) for key in keys]

        def named(match: re.Match) -> str:
            place = int(match["place"] or 0)
            return names[place - 1] if 0 < place <= len(names) else " and ".join(names)

        if self._spelled:
            text = self._spelled.sub(lambda match: self._renamed[folded(match[0])], text)
        return re.sub(r"<sks(?P<place>\d?)>|\bsks\b", named, text)


# --- prompts ------------------------------------------------------------------------------------------------------


def with_options(question: str, options: Mapping[str, str]) -> str:
    """Append the options: ``Which? A.first or B.second``."""
    if not options:
        return question
    return f"{question} {' or '.join(f'{letter}.{text}' for letter, text in options.items())}"


def box_prompt(question: str, names: Sequence[str]) -> str:
    """Ask about outlined regions; the question alone where nothing is outlined.

    Args:
        question: with its options.
        names: of the outlined regions, in the order of ``COLOURS``.
    """
    if not names:
        return question
    # "a orange box": the wording is the published one for every colour
    clauses = (
        f'the entity enclosed in a {colour} box is called "{name.upper()}"'
        for colour, name in zip(COLOURS, names, strict=False)
    )
    return (
        f"In this image, {' and '.join(clauses)}. Never mention the boxes and their colors. "
        f"Answer the following question: {question}"
    )


def text_prompt(question: str, names: Sequence[str], context: str) -> str:
    """Ask about a description; the question alone where there is none."""
    if not context:
        return question
    return f'This is a description of "{" and ".join(names)}": {context}\nAnswer the following question: {question}'
