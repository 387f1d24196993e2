"""Boxes on photos and the wording of questions, against literal expected strings and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pekit.names import concept_of_folder
from pekit.prompting import TASKS, Wording, box_prompt, draw_boxes, text_prompt, with_options
from pekit.records import Detection

HAT = concept_of_folder("this-is-my", "Alexs hat-hat")
COFFEE = concept_of_folder("this-is-my", "Zaks dog coffee-dog")
CASEY = concept_of_folder("this-is-my", "Casey-man")
PIG = concept_of_folder("yollava", "pig-cup")

RGB = [
    (0, 0, 255), (255, 0, 0), (0, 128, 0), (128, 0, 128), (255, 165, 0), (255, 192, 203), (128, 128, 128),
    (255, 255, 0),
]  # fmt: skip


# --- boxes ---


def test_outline_is_ten_pixels_wide_inside_the_corners() -> None:
    image = Image.new("RGB", (200, 100), "white")
    overlay = np.asarray(draw_boxes(image, [Detection("a", 1.0, (0.25, 0.2, 0.75, 0.8))]))
    expected = np.full((100, 200, 3), 255, dtype=np.uint8)
    for y in range(100):
        for x in range(200):  # corners (50, 20) and (150, 80), both drawn
            inside = 50 <= x <= 150 and 20 <= y <= 80
            kept = 60 <= x <= 140 and 30 <= y <= 70
            if inside and not kept:
                expected[y, x] = (0, 0, 255)
    np.testing.assert_array_equal(overlay, expected)
    assert image.getcolors() == [(20000, (255, 255, 255))]  # drawn on a copy


def test_colours_in_order_and_later_boxes_on_top() -> None:
    image = Image.new("RGB", (400, 60), "black")
    boxes = [Detection(str(i), 1.0, (i / 8, 0.0, (i + 1) / 8 - 0.02, 1.0)) for i in range(8)]
    overlay = draw_boxes(image, boxes)
    assert [overlay.getpixel((50 * i + 4, 30)) for i in range(8)] == RGB
    twice = draw_boxes(image, [boxes[0], Detection("again", 1.0, boxes[0].box_xyxyn)])
    assert twice.getpixel((4, 30)) == (255, 0, 0)


def test_box_up_to_the_edge_of_the_photo_stays_visible() -> None:
    overlay = draw_boxes(Image.new("RGB", (64, 48)), [Detection("a", 1.0, (0.0, 0.0, 1.0, 1.0))])
    for corner in ((0, 0), (63, 0), (0, 47), (63, 47)):
        assert overlay.getpixel(corner) == (0, 0, 255)
    assert overlay.getpixel((32, 24)) == (0, 0, 0)


def test_corners_between_pixels_are_truncated() -> None:
    # 101 * .333 = 33.633, 53 * .35 = 18.55, 101 * .78 = 78.78, 53 * .88 = 46.64
    overlay = draw_boxes(Image.new("RGB", (101, 53)), [Detection("a", 1.0, (0.333, 0.35, 0.78, 0.88))])
    assert overlay.getbbox() == (33, 18, 79, 47)  # the last ones are past the outline


def test_labels_stand_above_their_boxes_or_in_them() -> None:
    image = Image.new("RGB", (400, 300))
    boxes = [Detection("a", 0.9, (0.25, 0.5, 0.75, 0.8)), Detection("b", 0.8, (0.9, 0.0, 1.0, 0.4))]
    plain, written = np.asarray(draw_boxes(image, boxes)), np.asarray(draw_boxes(image, boxes, ["a mug 0.90", "b"]))
    changed = (plain != written).any(-1)
    ys, xs = np.nonzero(changed & (np.arange(400) < 300))
    assert xs.min() == 100 and ys.max() == 149  # left edge of the first box, the row above it
    assert {tuple(colour) for colour in written[140:150, 100:102].reshape(-1, 3)} == {(0, 0, 255)}
    letters = written[ys.min() : 150, 100 : xs.max() + 1]
    assert (letters > 127).all(-1).sum() > 20  # white on blue
    ys, xs = np.nonzero(changed & (np.arange(400) >= 300))
    assert xs.max() <= 399 and ys.min() >= 0 and len(xs) > 0  # no room above and beside the second
    assert not changed[160:, :300].any()


def test_a_label_wider_than_the_photo_is_written_smaller() -> None:
    image = Image.new("RGB", (200, 300))
    found = [Detection("a", 0.8, (0.0, 0.5, 1.0, 0.9))]
    short, long = (np.asarray(draw_boxes(image, found, [label])) for label in ("mug 0.80", f"{'a-name' * 6} 0.80"))
    heights = [(drawn[:150] != 0).any((1, 2)).sum() for drawn in (short, long)]
    assert heights[1] < heights[0]
    ink = (long[:150] > 127).all(-1).any(0)
    assert ink[:190].any() and not ink[199:].any()  # its end is there


def test_labels_are_dark_on_light_colours() -> None:
    image = Image.new("RGB", (300, 300), "blue")
    boxes = [Detection("x", 1.0, (0.1, 0.5, 0.9, 0.9))] * 8
    written = draw_boxes(image, boxes, [""] * 7 + ["MMM"]).crop((30, 100, 200, 150))  # yellow, the last one
    colours = {colour for _, colour in written.getcolors(10000)}
    assert (0, 0, 0) in colours and (255, 255, 0) in colours and (255, 255, 255) not in colours


# --- prompts ---


def test_one_concept() -> None:
    assert box_prompt("What colour is it?", ["Alex's hat"]) == (
        'In this image, the entity enclosed in a blue box is called "ALEX\'S HAT". Never mention the boxes and their '
        "colors. Answer the following question: What colour is it?"
    )


def test_two_concepts() -> None:
    assert box_prompt("Who is left?", ["Casey", "Casey's boosted board"]) == (
        'In this image, the entity enclosed in a blue box is called "CASEY" and the entity enclosed in a red box is '
        'called "CASEY\'S BOOSTED BOARD". Never mention the boxes and their colors. Answer the following question: Who '
        "is left?"
    )


def test_eight_concepts_name_every_colour() -> None:
    prompt = box_prompt("?", list("abcdefgh"))
    clauses = " and ".join(
        [
            'the entity enclosed in a blue box is called "A"',
            'the entity enclosed in a red box is called "B"',
            'the entity enclosed in a green box is called "C"',
            'the entity enclosed in a purple box is called "D"',
            'the entity enclosed in a orange box is called "E"',
            'the entity enclosed in a pink box is called "F"',
            'the entity enclosed in a gray box is called "G"',
            'the entity enclosed in a yellow box is called "H"',
        ]
    )
    assert prompt == (
        f"In this image, {clauses}. Never mention the boxes and their colors. Answer the following question: ?"
    )


def test_nothing_outlined_is_the_question_alone() -> None:
    assert box_prompt("What is this? A.cup or B.dog", []) == "What is this? A.cup or B.dog"


def test_options() -> None:
    assert with_options("Which?", {"A": "first", "B": "second"}) == "Which? A.first or B.second"
    assert with_options("Which?", {}) == "Which?"


def test_description_as_context() -> None:
    assert text_prompt("Is it red? A.Yes or B.No", ["bo"], "A brown dog.") == (
        'This is a description of "bo": A brown dog.\nAnswer the following question: Is it red? A.Yes or B.No'
    )
    assert text_prompt("Is it red?", ["bo"], "") == "Is it red?"


# --- names ---


@pytest.mark.parametrize(
    ("text", "concepts", "invented", "expected"),
    [
        ("What colour is <sks>?", [HAT], False, "What colour is Alex's hat?"),
        ("Is sks red? And <sks>'s brim?", [PIG], False, "Is pig-cup red? And pig-cup's brim?"),
        ("Do asks and sksy stay?", [HAT], False, "Do asks and sksy stay?"),
        ("Who has <sks2>, <sks1>?", [CASEY, HAT], False, "Who has Alex's hat, Casey?"),
        ("Where are <sks>?", [CASEY, HAT], False, "Where are Casey and Alex's hat?"),
        ("What colour is <sks>?", [HAT], True, "What colour is Vex?"),
        ("Is Alex\u2019s hat beside Zaks dog Coffee?", [HAT, COFFEE], True, "Is Vex beside Glint?"),
        ("Is ALEXS HAT beside alex's hatbox?", [HAT], True, "Is Vex beside alex's hatbox?"),
        ("Is Alex\u2019s hat red?", [HAT], False, "Is Alex\u2019s hat red?"),
        ("Is <sks> left of Nikki's car?", [HAT], True, "Is Vex left of Pax?"),  # not among the known ones
        ("Where is <sks>?", [CASEY], True, "Where is Casey?"),
    ],
)
def test_names_in_texts(text: str, concepts: list, invented: bool, expected: str) -> None:
    assert Wording(concepts, invented).fill(text, [concept.key for concept in concepts]) == expected


def test_names_shown() -> None:
    assert Wording([HAT, CASEY, PIG]).names == {
        "Alexs hat-hat": "Alex's hat", "Casey-man": "Casey", "pig-cup": "pig-cup"
    }  # fmt: skip
    assert Wording([HAT, CASEY, PIG], invented=True).names == {
        "Alexs hat-hat": "Vex", "Casey-man": "Casey", "pig-cup": "pig-cup"
    }  # fmt: skip
    assert Wording([]).fill("<sks>?", ["unknown"]) == "unknown?"


def test_tasks() -> None:
    names = ["vqa", "vqa_names", "vqa_names_ambiguity", "vqa_names_ambiguity_full"]
    assert list(TASKS) == [*names, *(f"base_vlm_{name}" for name in names), "tqa", "captioning"]
    assert [TASKS[name].personalised for name in names] == [True] * 4
    assert [TASKS[f"base_vlm_{name}"].personalised for name in names] == [False] * 4
    assert [TASKS[name].invented for name in names] == [False, True, True, True]
    assert [TASKS[f"base_vlm_{name}"].invented for name in names] == [False, True, True, True]
    assert [TASKS[name].others for name in names] == [0, 0, 1, 8]
    assert [name for name, task in TASKS.items() if task.text_only] == ["tqa"]
