"""The method, stage by stage: reference photos to stored views, query photos to matches and detections."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from pekit import features, regions
from pekit.hub import is_out_of_memory, pick_device
from pekit.pictures import Batch, Task, load_batches
from pekit.records import NOT_FINITE, Gallery, LoadingSettings, ModelSettings, Photo, Regions, UserError, View
from pekit.retrieval import Best, Matcher
from pekit.views import save_view

log = logging.getLogger(__name__)
T = TypeVar("T")
Out = TypeVar("Out")

PENDING_WRITES = 64
AUTO_BATCH = {"cuda": 16, "mps": 8, "cpu": 4}


class Recognizer:
    """The recognition models that a run uses, loaded; no other is.

    Args:
        models: which checkpoints, where and how.
        ground: load Grounding DINO.
        segment: load SAM.

    Raises:
        UserError: a checkpoint or device is not there.
    """

    def __init__(self, models: ModelSettings, ground: bool = True, segment: bool = False) -> None:
        self.size, self.device = models.size, pick_device(models.device)
        dtype = getattr(torch, models.dtype)
        where = (models.size, self.device, dtype)
        self.features = features.PatchFeatures(models.features, *where)
        self.grounder = regions.Grounder(models.grounding, *where) if ground else None
        self.segmenter = regions.Segmenter(models.masks, *where) if segment else None
        if models.compile:
            for stage in (self.features, self.grounder, self.segmenter):
                if stage is not None:
                    stage.model.compile()


class _Steps:
    """Runs the models over a batch in pieces that fit: halves the piece on out-of-memory, losing nothing."""

    def __init__(self, loading: LoadingSettings, device: torch.device) -> None:
        self.piece = loading.batch_size or AUTO_BATCH.get(device.type, AUTO_BATCH["cpu"])

    def __call__(self, run: Callable[[Batch], Out], batch: Batch) -> list[tuple[Batch, Out]]:
        """The pieces of the batch, each with what the models gave for it."""
        pieces: list[tuple[Batch, Out]] = []
        done = 0
        while done < len(batch):
            try:
                piece = batch.part(done, done + self.piece)
                pieces.append((piece, run(piece)))
                done += len(piece)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.piece == 1:
                    raise UserError(
                        "one photo does not fit in memory: use --models small or, on a GPU, --dtype bfloat16"
                    ) from None
            # not before the error is gone: its traceback holds what the pass that failed had computed
            self.piece = -(-self.piece // 2)
            torch.cuda.empty_cache()
            log.warning("out of memory: going on with %d photos per batch", self.piece)
        return pieces


def _stream(
    tasks: Sequence[Task],
    recognizer: Recognizer,
    loading: LoadingSettings,
    prepare: dict,
    run: Callable[[Batch], Out],
    read: Callable[[Batch, Out], list[T]],
    seed: int = 0,
    keep_pictures: bool = False,
) -> Iterator[tuple[Task, T | None, str]]:
    """Each task with its result, or None and the reason where its photo cannot be read.

    ``run`` gives the models a batch; ``read`` makes the results of what they gave, on a GPU while the next batch runs.
    """
    steps = _Steps(loading, recognizer.device)
    pin = recognizer.device.type == "cuda"
    batches = load_batches(tasks, recognizer.size, prepare, loading, steps.piece, seed, pin, keep_pictures)

    def results(batch: Batch, pieces: list[tuple[Batch, Out]]) -> list[tuple[Task, T | None, str]]:
        failed = [(task, None, reason) for task, reason in batch.failed]
        return [*failed, *((*each, "") for piece in pieces for each in zip(piece[0].tasks, read(*piece), strict=True))]

    def passes() -> Iterator[Callable[[], list[tuple[Task, T | None, str]]]]:
        for batch in batches:
            if loading.strict and batch.failed:
                reason = batch.failed[0][1]
                raise UserError(f"{reason}; mend or remove it, or leave out --strict to go on without it")
            yield partial(results, batch, steps(run, batch))

    for found in _beside(passes(), recognizer.device):
        yield from found


def _beside(passes: Iterator[Callable[[], T]], device: torch.device) -> Iterator[T]:
    """What reading each pass gives, in order; on a GPU read in a thread and stream beside the next pass.

    Small steps and waits, photo by photo, would leave the GPU idle otherwise.
    """
    if device.type != "cuda":  # there both would share the cores
        for read in passes:
            yield read()
        return
    stream = torch.cuda.Stream(device)
    waiting: deque[tuple[Future[T], Callable[[], T]]] = deque()

    def read_aside(read: Callable[[], T], computed: torch.cuda.Event) -> T:
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            return read()

    def result() -> T:
        future, read = waiting[0]  # Ctrl-C while it waits leaves it there
        try:
            found = future.result()
        except Exception as error:
            waiting.popleft()
            if not is_out_of_memory(error):
                raise
        else:
            waiting.popleft()
            return found
        del future  # with the error, whose traceback holds what the reading that failed had computed
        wait(other for other, _ in waiting)  # two readings at once would write to the same buffers
        torch.cuda.empty_cache()
        return read()

    stop: BaseException | None = None
    with ThreadPoolExecutor(1) as aside:
        try:
            for read in passes:
                computed = torch.cuda.current_stream(device).record_event()
                waiting.append((aside.submit(read_aside, read, computed), read))
                if len(waiting) > 1:
                    yield result()
        except (Exception, KeyboardInterrupt) as error:
            stop = error  # not before what is finished has been handed on
        while waiting:
            try:
                found = result()
            except Exception as error:
                stop = stop or error  # the first one counts
            else:
                yield found
    if stop:
        try:
            raise stop
        finally:
            del stop  # it would hold this frame, and all that is in it


# --- extraction ---------------------------------------------------------------------------------------------------


def extract_views(
    recognizer: Recognizer,
    tasks: Sequence[Task],
    prompts: dict[str, str],
    loading: LoadingSettings,
    place: Callable[[Task], Path],
    seed: int,
    min_mask_area: int = 0,
) -> dict[str, str]:
    """Reference photos to stored views: ground the concept, cut it out, keep the patch features under it.

    Args:
        recognizer: its models; with SAM the mask is SAM's, else the filled box.
        tasks: photos and augmentations.
        prompts: concept key -> grounding words.
        loading: batches and workers.
        place: task -> path of its view file.
        seed: of the augmentations.
        min_mask_area: SAM masks of fewer pixels are left empty.

    Returns:
        Name -> reason of the photos that could not be read.
    """
    dino, grounder, segmenter = recognizer.features, recognizer.grounder, recognizer.segmenter
    if grounder is None:
        raise ValueError("extraction needs a recognizer with ground=True")
    prepare = {"grounding": grounder.prepare, "features": dino.prepare}
    if segmenter is not None:
        prepare["masks"] = segmenter.prepare

    def run(batch: Batch) -> tuple[regions.Found, np.ndarray | None, torch.Tensor]:
        found = grounder.detect(batch.inputs["grounding"], [prompts[task.photo.concepts[0]] for task in batch.tasks])
        masks = None
        if segmenter is not None:
            masks = segmenter.cut(batch.inputs["masks"], boxes(found))
        return found, masks, dino(batch.inputs["features"])

    def boxes(found: regions.Found) -> np.ndarray:
        return np.concatenate([region.boxes_xyxy for region in found.top()])

    def read(batch: Batch, output: tuple[regions.Found, np.ndarray | None, torch.Tensor]) -> list[View]:
        found, masks, grids = output
        if masks is None:
            rectangles = features.patch_rectangles(features.pixel_boxes(boxes(found), recognizer.size), dino.patch)
            members = features.rectangle_members(rectangles, dino.grid)
        else:
            masks[masks.sum((1, 2)) < min_mask_area] = False
            members = features.sampled(masks, dino.patch)
        return [_view(*each) for each in zip(batch.tasks, grids, members, strict=True)]

    results = _stream(tasks, recognizer, loading, prepare, run, read, seed)
    return _store(tqdm(results, total=len(tasks), desc="extracting", unit="view"), place)


def _store(results: Iterable[tuple[Task, View | None, str]], place: Callable[[Task], Path]) -> dict[str, str]:
    """Write views as they come, from a thread of its own while the models go on.

    Returns:
        Name -> reason of the photos that have none.
    """
    failed: dict[str, str] = {}
    writes: deque[Future] = deque()
    with ThreadPoolExecutor(1) as writer:
        for task, view, reason in results:
            if view is None:
                if task.photo.name not in failed:
                    log.error("left out: %s", reason)
                failed[task.photo.name] = reason
                continue
            if not len(view.patches):
                log.warning(
                    "%s (augmentation %d): no patch under its mask; the view matches nothing",
                    view.photo,
                    view.augmentation,
                )
            writes.append(writer.submit(lambda task, view: save_view(place(task), view), task, view))
            while len(writes) > PENDING_WRITES or (writes and writes[0].done()):
                writes.popleft().result()
        for write in writes:
            write.result()
    return failed


def _view(task: Task, grid: torch.Tensor, member: np.ndarray) -> View:
    patches = features.patches_under(grid, member)
    if not np.isfinite(patches).all():
        raise _not_finite(task.photo)
    descriptor = (patches.mean(0, dtype=np.float64) if len(patches) else np.zeros(grid.shape[-1])).astype(np.float32)
    return View(task.photo.concepts[0], task.photo.name, task.augmentation, patches, descriptor, task.digest)


def _not_finite(photo: Photo) -> UserError:
    """A format too small for a model's numbers gives NaN, and what is compared with NaN is never found."""
    return UserError(f"{photo.name} gives features that are {NOT_FINITE}")


# --- matching -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """The proposals of one query photo matched to the gallery; proposals without a descriptor are left out.

    Attributes:
        photo: the photo.
        boxes_xyxy: int64 (M, 4), tight boxes of the proposals, px of the S x S picture.
        best: the best of the M proposals for each of the C concepts, and the other way round.
        error: why the photo could not be read; None where it could.
    """

    photo: Photo
    boxes_xyxy: np.ndarray
    best: Best
    error: str | None = None


def match_photos(
    recognizer: Recognizer, photos: Sequence[Photo], gallery: Gallery, loading: LoadingSettings, min_mask_area: int = 0
) -> Iterator[Matches]:
    """Query photos to matches: propose regions, pool their patch features, compare them with every view.

    Proposals are Grounding DINO's boxes, or SAM's automatic masks where the recognizer has SAM alone.

    Args:
        recognizer: its models.
        photos: N photos.
        gallery: C concepts.
        loading: batches and workers.
        min_mask_area: automatic masks of fewer pixels are dropped.

    Returns:
        N Matches, in no promised order.
    """
    dino, grounder, segmenter = recognizer.features, recognizer.grounder, recognizer.segmenter
    if gallery.descriptors.shape[2] != dino.width and gallery.valid.any():
        raise UserError(
            f"the views have {gallery.descriptors.shape[2]} features, DINOv2 has {dino.width}: "
            "give --dino_model the model that extraction.py used"
        )
    matcher = Matcher(gallery, recognizer.device)
    prepare = {"features": dino.prepare}
    if grounder is not None:
        prepare["grounding"] = grounder.prepare

    def run(batch: Batch) -> tuple[regions.Found | list[Regions], torch.Tensor]:
        found: regions.Found | list[Regions]
        if grounder is not None:
            found = grounder.detect(batch.inputs["grounding"])
        elif segmenter is not None:
            found = [segmenter.everything(picture, min_mask_area) for picture in batch.pictures]
        else:
            raise ValueError("matching needs a recognizer with ground=True or segment=True")
        return found, dino(batch.inputs["features"])

    def read(batch: Batch, output: tuple[regions.Found | list[Regions], torch.Tensor]) -> list[tuple[np.ndarray, Best]]:
        found, grids = output
        proposals = found.proposals() if isinstance(found, regions.Found) else found
        return [_match(*each, matcher, recognizer) for each in zip(batch.tasks, grids, proposals, strict=True)]

    tasks = [Task(photo) for photo in photos]
    nothing = np.zeros((0, 4), dtype=np.int64), Best.none(len(gallery.concepts))
    for task, result, reason in _stream(tasks, recognizer, loading, prepare, run, read, keep_pictures=grounder is None):
        boxes, best = result or nothing
        yield Matches(task.photo, boxes, best, reason or None)


def _match(
    task: Task, grid: torch.Tensor, proposals: Regions, matcher: Matcher, recognizer: Recognizer
) -> tuple[np.ndarray, Best]:
    """Tight boxes int (M, 4) of the proposals that cover a patch, and what they match."""
    boxes = features.pixel_boxes(proposals.boxes_xyxy, recognizer.size)
    patch = recognizer.features.patch
    if proposals.masks is None:
        pooled, which = features.pool_boxes(grid, features.patch_rectangles(boxes, patch))
    else:
        pooled, which = features.pool_masks(grid, features.sampled(proposals.masks, patch))
    kept = which >= 0
    best = matcher.best(pooled)
    if kept.any() and np.isnan(best.nearest).any():
        raise _not_finite(task.photo)
    return boxes[kept], best.of_proposals(which[kept]) if kept.any() else best
