"""The records that travel between the stages, validated on construction. Imports nothing of ours.

Symbols: S side of the squashed picture in px, p patch size in px, G = S/p, D feature width, M proposals in a photo,
C concepts, V views of a concept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np


class UserError(Exception):
    """A mistake the user can mend: one sentence that names the file or option and the mend. Scripts exit with 2."""


class PhotoError(Exception):
    """One photo cannot be read; the run goes on without it unless ``--strict``."""


NOT_FINITE = "not finite: use --dtype float32; if you already do, another checkpoint"


def counted(number: int, noun: str) -> str:
    """A number with its noun, for messages: "1 photo", "3 photos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason(error: BaseException) -> str:
    """What a library's error says, short enough for a sentence: its first line, or what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


@dataclass(frozen=True)
class ModelSettings:
    """Which checkpoints, where and how they run.

    Attributes:
        grounding, masks, features: hub id, ``id@revision`` or local folder.
        device: "auto", "cpu", "mps", "cuda" or "cuda:1".
        dtype: "float32", "bfloat16" or "float16".
        size: side S of the squashed picture in px.
        offline: never ask the hub.
        compile: run the models through ``torch.compile``.
    """

    grounding: str
    masks: str
    features: str
    device: str = "auto"
    dtype: str = "float32"
    size: int = 518
    offline: bool = False
    compile: bool = False


@dataclass(frozen=True)
class LoadingSettings:
    """How photos are read and batched.

    Attributes:
        batch_size: photos per forward pass; 0 finds what fits.
        num_workers: processes that decode and prepare photos; 0 does it in the main process.
        strict: stop at the first unreadable photo.
        exif: turn photos as their EXIF orientation says (the published codes do not).
    """

    batch_size: int = 1
    num_workers: int = 2
    strict: bool = False
    exif: bool = False


@dataclass(frozen=True)
class Concept:
    """A personal object, as its folder of reference photos names it.

    Attributes:
        key: name of the concept's folder on disk; also the folder of its views.
        prompt: grounding words, lower case and closed with a full stop ("alexs hat hat.").
        name: display name ("Alex's hat").
    """

    key: str
    prompt: str
    name: str


@dataclass(frozen=True)
class Photo:
    """A photo on disk and the concepts it is known to show.

    Attributes:
        path: the file.
        name: its path relative to the data folder, with forward slashes; how records name the photo.
        concepts: keys of the concepts shown, the folder's own first.
    """

    path: Path
    name: str
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Regions:
    """Candidate regions of one squashed picture, in the order in which the detector lists them.

    Attributes:
        boxes_xyxy: f32 (M, 4), px of the S x S picture, not rounded, not clamped.
        scores: f32 (M,), detector confidence in [0, 1].
        masks: bool (M, S, S), or None where every region is its filled box.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        m = len(self.scores)
        _check(self.boxes_xyxy.shape == (m, 4), f"boxes_xyxy has shape {self.boxes_xyxy.shape}, expected ({m}, 4)")
        if self.masks is not None:
            _check(
                self.masks.ndim == 3 and len(self.masks) == m,
                f"masks has shape {self.masks.shape}, expected ({m}, S, S)",
            )

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class View:
    """One stored reference view.

    Attributes:
        concept: key of the concept.
        photo: the photo's path relative to the data folder.
        augmentation: 0 for the untouched photo, 1..n for its augmentations.
        patches: f32 (P, D), the patch features under the mask; P = 0 where the mask holds no sampled pixel.
        descriptor: f32 (D,), mean of the patches, not normalised; zeros where P = 0.
        photo_digest: of the photo's file; "" where it is not known.
    """

    concept: str
    photo: str
    augmentation: int
    patches: np.ndarray
    descriptor: np.ndarray
    photo_digest: str = ""

    def __post_init__(self) -> None:
        _check(
            self.patches.ndim == 2 and self.descriptor.shape == self.patches.shape[1:],
            f"patches {self.patches.shape} and descriptor {self.descriptor.shape} are not (P, D) and (D,)",
        )


@dataclass(frozen=True)
class Gallery:
    """The views of all concepts as arrays, padded to the largest number of views.

    Attributes:
        concepts: C concepts, in reporting order.
        descriptors: f32 (C, V, D), not normalised.
        valid: bool (C, V), False for padding and for views without patches.
        files: the view files in use, relative to the features folder.
        source: digest of what the arrays were read from; "" when only their own content tells.
    """

    concepts: tuple[Concept, ...]
    descriptors: np.ndarray
    valid: np.ndarray
    files: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        c = len(self.concepts)
        _check(
            self.descriptors.ndim == 3 and self.descriptors.shape[0] == c,
            f"descriptors has shape {self.descriptors.shape}, expected ({c}, V, D)",
        )
        _check(
            self.valid.shape == self.descriptors.shape[:2],
            f"valid has shape {self.valid.shape}, expected {self.descriptors.shape[:2]}",
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(concept.key for concept in self.concepts)


@dataclass(frozen=True)
class Detection:
    """A concept found in a photo.

    Attributes:
        concept: key of the concept.
        score: mean over the merged proposals of their best cosine similarity.
        box_xyxyn: four corners in [0, 1], the tight box of the merged region.
    """

    concept: str
    score: float
    box_xyxyn: tuple[float, float, float, float]

    def as_json(self) -> dict:
        return {"concept": self.concept, "score": self.score, "box_xyxyn": list(self.box_xyxyn)}

    @staticmethod
    def from_json(record: dict) -> Detection:
        """Read what ``as_json`` gives; more may stand beside it."""
        return Detection(record["concept"], record["score"], tuple(record["box_xyxyn"]))


@dataclass(frozen=True)
class Question:
    """A question about a photo, or about a text.

    Attributes:
        text: the question as the file words it, placeholders included.
        answer: the key: a letter where there are options, else the text of the answer.
        concepts: keys of the concepts asked about.
        photo: path of the photo, or None for text-only questions.
        options: letter -> text; empty for an open question.
        photo_name: the photo's path as the question file writes it.
        context: text given in place of a photo (text-only questions).
    """

    text: str
    answer: str
    concepts: tuple[str, ...]
    photo: Path | None = None
    options: dict[str, str] = field(default_factory=dict)
    photo_name: str = ""
    context: str = ""
