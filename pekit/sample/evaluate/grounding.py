"""How well the sample Grounding DINO finds held-out objects, through the scripts' own region code and settings."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from pekit.photos import squash
from pekit.regions import Grounder
from pekit.sample.drawing import CATEGORIES, Scene, draw_scene, random_instance, random_scene
from pekit.sample.evaluate import Row

SIDE = 518
_PHOTO_SIZES = ((256, 256), (320, 240), (240, 320))
_NAMES = ("", "noras ", "my ", "polka ", "belas_", "tims {noun} ")


def evaluate(folder: Path, seed: int = 2024, n_photos: int = 300, device: str = "cpu") -> list[Row]:
    """Measures coverage by proposals and the category prompt.

    Args:
        folder: model folder.
        seed: of the scenes.
        n_photos: drawn for each of the two figures.
        device: torch device of the model.

    Returns:
        The two rows of the table.
    """
    grounder = load(folder, device)
    covered = proposal_coverage(grounder, np.random.default_rng([seed, 0]), n_photos)
    hits = reference_hits(grounder, np.random.default_rng([seed, 1]), n_photos)
    name = "Grounding DINO"
    return [
        Row(name, '"object." proposals cover an object', float(np.mean(covered)), 0.95, True, len(covered)),
        Row(name, "top box of the category prompt on a reference photo", float(np.mean(hits)), 0.90, True, len(hits)),
    ]


def load(folder: Path, device: str = "cpu") -> Grounder:
    """Loads a model folder as the scripts do."""
    return Grounder(str(folder), SIDE, torch.device(device), torch.float32)


def proposal_coverage(grounder: Grounder, rng: np.random.Generator, n_photos: int) -> list[bool]:
    """Tells for each object of random held-out scenes whether a proposal overlaps it by half."""
    covered: list[bool] = []
    for size in _photo_sizes(n_photos):
        scene = random_scene(rng, size=size, pool="heldout")
        prepared, truths = _squashed(grounder, scene)
        proposals = torch.from_numpy(grounder.propose([prepared])[0].boxes_xyxy)
        covered += [bool((row >= 0.5).any()) for row in box_iou(truths, proposals)]
    return covered


def reference_hits(grounder: Grounder, rng: np.random.Generator, n_photos: int) -> list[bool]:
    """Tells for each held-out reference photo whether the category prompt's best box overlaps its main object by half.

    Two photos of five show an object of another category as well.
    """
    hits = []
    for size in _photo_sizes(n_photos):
        instances = [random_instance(rng, pool="heldout")]
        category = instances[0].category
        if rng.random() < 0.4:
            others = [name for name in CATEGORIES if name != category]
            instances.append(random_instance(rng, str(rng.choice(others)), "heldout"))
        prepared, truths = _squashed(grounder, draw_scene(rng, instances, size))
        prompt = str(rng.choice(_NAMES)).format(noun=category) + category + "."
        best = torch.from_numpy(grounder.ground([prepared], [prompt])[0].boxes_xyxy)
        hits.append(bool(box_iou(truths[:1], best) >= 0.5))
    return hits


def _photo_sizes(n_photos: int) -> Iterator[tuple[int, int]]:
    return (_PHOTO_SIZES[index % len(_PHOTO_SIZES)] for index in range(n_photos))


def _squashed(grounder: Grounder, scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """A scene prepared for the model, and its objects' boxes (N, 4) in px of the squashed photo."""
    photo = Image.fromarray(scene.image)
    boxes = torch.from_numpy(np.stack([drawn.box_xyxy for drawn in scene.objects]))
    return grounder.prepare(squash(photo, SIDE)), boxes * (SIDE / torch.tensor([*photo.size, *photo.size]))
