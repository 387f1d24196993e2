"""What the sample LVLM looks at while it trains: scenes with outlined objects, and what is where in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision.transforms.v2.functional import normalize
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pekit.prompting import COLOURS as BOX_COLOURS
from pekit.prompting import LINE_WIDTH
from pekit.sample.benchmark import SIZES
from pekit.sample.models.lvlm import DOWNSAMPLE, IMAGE_SIZE, PATCH
from pekit.sample.questions import QUESTION_TEMPLATES, right_answer
from pekit.sample.train.scenes import StoredScene, augment

IGNORED = -100
CELL = int(PATCH / DOWNSAMPLE)  # px of the picture to an image token, each way
ANSWERS = {kind: answers for kind, (_, answers) in QUESTION_TEMPLATES.items()}
LEAST_SHARE = 0.2  # of a cell that an object must cover to be what the cell shows
BARE_SHARE = 0.03  # at most as much, and the cell shows the background
BACKGROUND, PLAIN, OUTLINED = range(3)  # marks of cells; OUTLINED + k is for the k-th box colour
_N_OUTLINED = (0.5, 0.4, 0.1)
_LINES = {"blue": (0, 0, 255), "red": (255, 0, 0), "green": (0, 128, 0)}


@dataclass(frozen=True)
class View:
    """A scene as the LVLM is shown it.

    Attributes:
        image: uint8 (S, S, 3) RGB, objects outlined.
        labels: uint8 (S, S), k where object k - 1 is.
        things: what the scene shows, as the question files' truth has it.
        outlined: numbers of the outlined objects, in the order of the box colours; empty for a plain picture.
        boxes_xyxy: float32 (len(outlined), 4) in px, the outlines.
        whole: whether the view holds every object of the scene, so that they can be counted.
        corner: row and column of its first patch in the grid of a whole picture.
    """

    image: np.ndarray
    labels: np.ndarray
    things: list[dict]
    outlined: tuple[int, ...]
    boxes_xyxy: np.ndarray
    whole: bool
    corner: tuple[int, int] = (0, 0)

    def answers(self, k: int) -> dict[str, int]:
        """Kind of question -> number of the right answer about the k-th thing, for the kinds that have one here."""
        kinds = [kind for kind in ANSWERS if kind != "count" or self.whole]
        right = {kind: known_answer(kind, self.things[k], self.things) for kind in kinds}
        return {kind: ANSWERS[kind].index(answer) for kind, answer in right.items() if answer}


def draw_view(rng: np.random.Generator, scene: StoredScene, plain: bool) -> View:
    """Look at a stored scene through a random window and outline some of its objects, imprecisely, as a detector would.

    Args:
        rng: source of every choice.
        scene: as stored.
        plain: outline nothing, if there is but one object: of several, nobody could tell which is meant.
    """
    while not (seen := augment(rng, scene, IMAGE_SIZE)).instances:
        pass
    n_objects = len(seen.instances)
    count = 0 if plain and n_objects == 1 else min(n_objects, 1 + int(rng.choice(len(_N_OUTLINED), p=_N_OUTLINED)))
    outlined = tuple(int(k) for k in rng.permutation(n_objects)[:count])
    image = seen.image.copy()
    width, height = SIZES[rng.integers(len(SIZES))]
    boxes = np.zeros((count, 4), np.float32)
    for place, k in enumerate(outlined):
        left, top, right, bottom = seen.boxes_xyxy[k]
        spread = np.array([right - left, bottom - top, right - left, bottom - top]) * rng.choice([0.02, 0.07])
        box = np.clip(seen.boxes_xyxy[k] + rng.normal(0, spread), 0, IMAGE_SIZE)
        thickness = (LINE_WIDTH * IMAGE_SIZE / width, LINE_WIDTH * IMAGE_SIZE / height)
        outline(image, box, thickness, _LINES[BOX_COLOURS[place]])
        boxes[place] = box
    things = [
        {**one.looks, "box_xyxyn": (box / IMAGE_SIZE).tolist()}
        for one, box in zip(seen.instances, seen.boxes_xyxy, strict=True)
    ]
    whole = len(seen.instances) == len(scene.instances)
    return View(image, seen.labels, things, outlined, boxes, whole)


def near_view(rng: np.random.Generator, view: View, k: int, cells: int) -> View:
    """The part of a view around one of its objects; its patches keep their places.

    Args:
        rng: source of every choice.
        view: of a whole picture.
        k: number of the object.
        cells: side of the part, in image tokens.
    """
    x1, y1, x2, y2 = np.array(view.things[k]["box_xyxyn"]) * IMAGE_SIZE / CELL
    centre = np.array([y1 + y2, x1 + x2]) / 2 + rng.uniform(-1, 1, 2)
    row, column = np.clip((centre - cells / 2).round().astype(int), 0, IMAGE_SIZE // CELL - cells)
    rows, columns = (slice(first * CELL, (first + cells) * CELL) for first in (row, column))
    corner = (int(row) * CELL // PATCH, int(column) * CELL // PATCH)
    return replace(view, image=view.image[rows, columns], labels=view.labels[rows, columns], whole=False, corner=corner)


def outline(
    image: np.ndarray, box_xyxy: np.ndarray, thickness: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    """Outline a box inwards, in place, with edges as soft as shrinking the outlined photo makes them.

    Args:
        image: uint8 (H, W, 3).
        box_xyxy: corners in px.
        thickness: of the upright and of the level lines, in px; they differ in a squashed photo.
        colour: RGB.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box_xyxy
    across, down = thickness
    outer = np.outer(_covered(top, bottom, height), _covered(left, right, width))
    inner = np.outer(_covered(top + down, bottom - down, height), _covered(left + across, right - across, width))
    share = (outer - inner)[..., None]
    rows, columns = slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))
    share, part = share[rows, columns], image[rows, columns]
    image[rows, columns] = (part + share * (np.array(colour) - part.astype(np.float32))).astype(np.uint8)


def _covered(first: float, last: float, size: int) -> np.ndarray:
    """How much of each pixel of a line lies between two places, f32 (size,)."""
    edges = np.clip(np.arange(size + 1, dtype=np.float32), first, max(first, last))
    return np.diff(edges)


def known_answer(kind: str, own: dict, things: Sequence[dict]) -> str | None:
    """The right answer about one of the things in view; None where there is none among the kind's answers."""
    if kind == "count" and sum(thing["category"] == own["category"] for thing in things) > len(ANSWERS["count"]):
        return None
    return right_answer(kind, own, things)


@dataclass(frozen=True)
class CellTruth:
    """What each cell of B views shows; n x n cells in rows.

    Attributes:
        words: kind of question -> int (B, n * n), number of the right answer about the object in the cell among the
            kind's answers; `IGNORED` where there is no object or no answer.
        mark: int (B, n * n), `BACKGROUND`, `PLAIN` for an object without outline, `OUTLINED` + k for the object
            outlined in the k-th box colour; `IGNORED` where an object covers too little of the cell.
        weight: float32 (B, n * n), what a cell counts for beside others: 1 / sqrt(m) in an object, or a background, of
            m cells. Small objects are asked about as often as large ones, which have many more cells.
    """

    words: dict[str, torch.Tensor]
    mark: torch.Tensor
    weight: torch.Tensor


def cell_truth(views: Sequence[View], cell: int = CELL) -> CellTruth:
    """Look up, cell by cell, what views show.

    Args:
        views: the pictures, all of one size.
        cell: side of a cell in px, a divisor of the pictures' side.
    """
    n = len(views[0].labels) // cell
    words = {kind: np.full((len(views), n * n), IGNORED) for kind in ANSWERS}
    mark = np.full((len(views), n * n), IGNORED)
    weight = np.zeros((len(views), n * n), np.float32)
    for row, view in enumerate(views):
        pixels_of = view.labels.reshape(n, cell, n, cell).transpose(0, 2, 1, 3).reshape(n * n, -1)
        covered = np.stack([(pixels_of == k).mean(1) for k in range(1, len(view.things) + 1)])
        most, owner = covered.max(0), covered.argmax(0)
        bare = most <= BARE_SHARE
        mark[row, bare], weight[row, bare] = BACKGROUND, max(1, bare.sum()) ** -0.5
        for k in range(len(view.things)):
            cells = (owner == k) & (most >= LEAST_SHARE)
            mark[row, cells] = OUTLINED + view.outlined.index(k) if k in view.outlined else PLAIN
            weight[row, cells] = max(1, cells.sum()) ** -0.5
            for kind, number in view.answers(k).items():
                words[kind][row, cells] = number
    tensors = {kind: torch.from_numpy(numbers) for kind, numbers in words.items()}
    return CellTruth(tensors, torch.from_numpy(mark), torch.from_numpy(weight))


def pixels(views: Sequence[View]) -> torch.Tensor:
    """Normalised pictures, f32 (B, 3, S, S)."""
    images = torch.from_numpy(np.stack([view.image for view in views])).permute(0, 3, 1, 2) / 255
    return normalize(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
