"""How well the sample LVLM answers about outlined objects it was never trained on, through the scripts' own prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pekit.lvlm import open_lvlm
from pekit.lvlm_interface import LvlmSettings, Request
from pekit.matching import released_letter
from pekit.prompting import box_prompt, draw_boxes, with_options
from pekit.records import Detection
from pekit.sample.benchmark import SIZES
from pekit.sample.drawing import Scene, random_scene
from pekit.sample.evaluate import Row
from pekit.sample.questions import QUESTION_TEMPLATES, right_answer, two_options, wrong_answer

NAMES = ("momo", "lulu")


class Tag(NamedTuple):
    """What is asked in a request.

    Attributes:
        named: how many objects are outlined and named: 0 to 2.
        kind: key of `QUESTION_TEMPLATES`.
        letter: the right one, A or B.
        both_in_view: whether the wrong option is true of another object of the scene.
        several: whether there is more than one of its kind.
        by_sight: how often they get it right who see everything, but do not know which object is meant and so take the
            option that is true of more objects: 0, 1/2 or 1.
    """

    named: int
    kind: str
    letter: str
    both_in_view: bool
    several: bool
    by_sight: float


def evaluate(folder: Path, seed: int = 2024, n_scenes: int = 80, device: str = "cpu") -> list[Row]:
    """Asks two-option questions about outlined objects, and the same ones without outlines and names.

    Args:
        folder: model folder.
        seed: of the held-out scenes and of the questions.
        n_scenes: scenes to draw, of two to four objects; each is asked about one of them, one question of every kind.
        device: torch device of the model.

    Returns:
        Shares of right letters: of all questions, of each kind, of the counts that are not one, as most are, and of the
        un-personalised baseline; then both of the questions alone that nobody can answer without knowing which object
        is meant, whose wrong option is true of another object in view; then of the questions with another object
        outlined besides. Beside each figure without outline stands what perfect sight would get: whoever sees well and
        is not told which object is meant drifts towards that.
    """
    rng = np.random.default_rng(seed)
    requests = [request for _ in range(n_scenes) for request in questions(rng)]
    settings = LvlmSettings(str(folder), batch_size=16, device=device, dtype="float32", max_new_tokens=6)
    lvlm = open_lvlm(settings)
    lvlm.load()
    graded: dict[int, list[tuple[Tag, bool]]] = {0: [], 1: [], 2: []}
    for request, reply in lvlm.answers(requests):
        graded[request.tag.named].append((request.tag, released_letter(reply.text or "", "AB") == request.tag.letter))
    plain, asked, of_two = graded.values()
    told_apart, guessed = ([hit for tag, hit in some if tag.both_in_view] for some in (asked, plain))
    return [
        _row("two-option questions about the outlined object", [hit for _, hit in asked], 0.9, True),
        *(
            _row(f"… about its {kind}", [hit for tag, hit in asked if tag.kind == kind], 0.9, True)
            for kind in QUESTION_TEMPLATES
        ),
        _row(
            "… about its count, several of its kind in view",
            [hit for tag, hit in asked if tag.kind == "count" and tag.several],
            0.9,
            True,
        ),
        _row("the same without outline and name, several objects in view", [hit for _, hit in plain], 0.65, False),
        _row("the same without outline and name by perfect sight", [tag.by_sight for tag, _ in plain], None, False),
        _row("those whose wrong option is true of another object in view", told_apart, 0.9, True),
        _row("those without outline and name", guessed, 0.65, False),
        _row(
            "those without outline and name by perfect sight",
            [tag.by_sight for tag, _ in plain if tag.both_in_view],
            None,
            False,
        ),
        _row("all of them with another object outlined and named besides", [hit for _, hit in of_two], 0.9, True),
    ]


def questions(rng: np.random.Generator) -> list[Request]:
    """Draws a held-out scene and words a question of every kind about one of its objects: with its outline, without
    any, and with another object's besides.

    Args:
        rng: source of every choice.

    Returns:
        Requests, each with its `Tag`.
    """
    width, height = SIZES[rng.integers(len(SIZES))]
    scene = random_scene(rng, int(rng.integers(2, 5)), (width, height), "heldout")
    things = truth(scene)
    own = things[rng.integers(len(things))]
    aside = rng.spawn(1)[0]  # so that the questions are the same whatever is outlined besides
    others = [thing for thing in things if thing is not own]
    pair = [own, others[aside.integers(len(others))]][:: aside.choice([1, -1])]
    image = Image.fromarray(scene.image)
    shown = [(0, image), (1, _outlined(image, [own])), (2, _outlined(image, pair))]
    requests = []
    for kind, (wordings, _) in QUESTION_TEMPLATES.items():
        if not (right := right_answer(kind, own, things)):
            continue
        letter = "AB"[rng.integers(2)]
        wrong = wrong_answer(rng, kind, own, things)
        wording = str(rng.choice(wordings))
        true = [right_answer(kind, thing, things) for thing in things]
        by_sight = float(np.heaviside(true.count(right) - true.count(wrong), 0.5))
        for named, picture in shown:
            name = NAMES[pair.index(own)] if named == 2 else NAMES[0]
            question = with_options(wording.format(name=name), two_options(right, wrong, letter))
            several = right_answer("count", own, things) != "one"
            tag = Tag(named, kind, letter, wrong in true, several, by_sight)
            requests.append(Request(tag, picture, box_prompt(question, NAMES[:named])))
    return requests


def _outlined(image: Image.Image, things: Sequence[dict]) -> Image.Image:
    """The picture with things outlined in the order of the box colours."""
    found = [Detection(name, 1.0, tuple(thing["box_xyxyn"])) for name, thing in zip(NAMES, things, strict=False)]
    return draw_boxes(image, found)


def truth(scene: Scene) -> list[dict]:
    """What a scene shows, as the sample's truth has it."""
    height, width = scene.image.shape[:2]
    return [
        {**thing.instance.looks, "box_xyxyn": (thing.box_xyxy / [width, height, width, height]).tolist()}
        for thing in scene.objects
    ]


def _row(asked: str, hits: Sequence[float], bound: float | None, at_least: bool) -> Row:
    return Row("LVLM", asked, float(np.mean(hits)), bound, at_least, len(hits))
