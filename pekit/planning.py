"""What a run of VQA asks: where the concepts are in its photos, and the words (method, step 7)."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from pekit.answers import BASELINE, PERSONALISED, Query
from pekit.files import digest_if_readable
from pekit.gallery import check_views, identity, load_gallery
from pekit.hub import identify
from pekit.parallel import Shard, agree, gather
from pekit.prompting import COLOURS, TASKS, Task, Wording, box_prompt, text_prompt, with_options
from pekit.questions import Item
from pekit.records import Concept, Detection, Gallery, LoadingSettings, ModelSettings, Photo, Question
from pekit.retrieval import locate
from pekit.vqa_runs import VqaSettings

log = logging.getLogger(__name__)


# --- where the concepts are ---------------------------------------------------------------------------------------


def concepts_of(items: Iterable[Item]) -> set[str]:
    """Keys of the concepts asked about."""
    return {key for item in items for key in item.question.concepts}


def find_gallery(
    asked_about: set[str],
    concepts: Sequence[Concept],
    settings: VqaSettings,
    models: ModelSettings,
    loading: LoadingSettings,
) -> Gallery | None:
    """The views of the concepts asked about (of all, where others are outlined too); None where no box is drawn.

    Raises:
        UserError: there are none, or photos would go through other models, or at another size, than the views.
    """
    task = TASKS[settings.task]
    if not task.personalised or task.text_only:
        return None
    wanted = [concept for concept in concepts if task.others or concept.key in asked_about]
    gallery = load_gallery(settings.views_folder, wanted, settings.variation, settings.n_training_views, settings.seed)
    split = settings.split if task.captions else ""
    check_views(settings.views_folder, identify(models, ground=True, segment=False), models, loading, split)
    return gallery


def locate_concepts(
    items: Sequence[Item],
    gallery: Gallery,
    settings: VqaSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    shard: Shard,
    keep: Callable[[Photo, set[str], list[Detection]], None] = lambda *found: None,
) -> dict[Path, list[Detection]]:
    """The best region in each photo of each concept asked about there, and where the task outlines others of each of
    the gallery; looked for once per photo, by one of the processes.

    Args:
        items: questions.
        gallery: from ``find_gallery``.
        settings: task, threshold.
        models: of the recognition.
        loading: how photos are read.
        shard: which of the processes this is.
        keep: is given each photo of this process that could be read, the concepts asked about there, and the regions,
            as they are found.

    Returns:
        Photo -> regions, best first; a photo that cannot be read has none.

    Raises:
        UserError: the processes have read different views.
    """
    from pekit.pipeline import Recognizer, match_photos

    agree(identity(gallery), "the views", shard)
    asked: dict[Path, list[Question]] = {}
    for item in items:
        if item.question.photo:
            asked.setdefault(item.question.photo, []).append(item.question)
    photos = shard.share([Photo(path, questions[-1].photo_name) for path, questions in asked.items()])
    least = -math.inf if settings.detect_thresh is None else settings.detect_thresh
    located: dict[Path, list[Detection]] = {}
    recognizer = Recognizer(models, ground=True) if photos else None
    matched = match_photos(recognizer, photos, gallery, loading) if recognizer else iter(())
    for matches in tqdm(matched, total=len(photos), desc="locating", unit="photo"):
        if matches.error:
            log.error("%s", matches.error)
        # a region of each of a thousand concepts would take more room than what the questions need
        about = {key for question in asked[matches.photo.path] for key in question.concepts}
        found = (
            locate(matches.best, matches.boxes_xyxy, column, key, models.size)
            for column, key in enumerate(gallery.keys)
            if key in about or TASKS[settings.task].others
        )
        regions = [detection for detection in found if detection and detection.score > least]
        located[matches.photo.path] = sorted(regions, key=lambda detection: -detection.score)
        if not matches.error:
            keep(matches.photo, about, located[matches.photo.path])
    del recognizer, matched  # the LVLM needs their room
    gc.collect()
    torch.cuda.empty_cache()
    return {path: regions for part in gather(located, shard) for path, regions in part.items()}


# --- what is asked ------------------------------------------------------------------------------------------------


def plan(items: Iterable[Item], located: dict[Path, list[Detection]], concepts: Sequence[Concept],
         settings: VqaSettings) -> Iterator[Query]:  # fmt: skip
    """Word each question, and with the baseline each twice.

    Args:
        items: questions.
        located: from ``locate_concepts``.
        concepts: those known by name.
        settings: task, baseline.
    """
    task = TASKS[settings.task]
    wording = Wording(concepts, task.invented)
    for item in items:
        query = _unaided(item, wording, task)
        yield _aided(query, item, located, task, wording)
        if settings.with_baseline:
            yield replace(query, variant=BASELINE)


def _unaided(item: Item, wording: Wording, task: Task) -> Query:
    """The question alone."""
    question = item.question
    text = wording.fill(question.text, question.concepts)
    options = {letter: wording.fill(option, question.concepts) for letter, option in question.options.items()}
    return Query(
        number=item.number,
        variant=PERSONALISED,
        subject=item.subject,
        photo_name=question.photo_name if question.photo else "",
        concepts=question.concepts,
        question=text,
        options=options,
        answer=question.answer if options else wording.fill(question.answer, question.concepts),
        prompt=with_options(text, options),
        identifiers=tuple(map(wording.name, question.concepts)) if task.captions else (),
        gpt_answer=item.gpt_answer,
        photo=question.photo,
        photo_digest=digest_if_readable(question.photo) if question.photo else "",
    )


def _aided(query: Query, item: Item, located: dict[Path, list[Detection]], task: Task, wording: Wording) -> Query:
    """The question as the task asks it: with boxes and names, or with a description."""
    if task.text_only:
        names = [wording.name(key) for key in query.concepts]
        context = wording.fill(item.question.context, query.concepts)
        return replace(query, prompt=text_prompt(query.prompt, names, context))
    if not task.personalised or query.photo is None:
        return query
    outlined, not_found = choose_regions(query.concepts, located.get(query.photo, []), task.others)
    names = [wording.name(detection.concept) for detection in outlined]
    prompt = box_prompt(query.prompt, names)
    return replace(query, prompt=prompt, outlined=tuple(outlined), names=tuple(names), not_found=not_found)


def choose_regions(
    keys: Sequence[str], located: Sequence[Detection], others: int
) -> tuple[list[Detection], tuple[str, ...]]:
    """The regions to outline: of the concepts asked about, in their order, then of others, best first.

    Another concept is left out where its best region is one that is outlined already.

    Args:
        keys: concepts asked about.
        located: regions in the photo, best first.
        others: how many others at most.

    Returns:
        Regions, at most one per colour, and the concepts asked about that have none.
    """
    by_key = {detection.concept: detection for detection in located}
    chosen = [by_key[key] for key in keys if key in by_key]
    most = min(len(chosen) + others, len(COLOURS))
    for detection in located:
        taken = {other.box_xyxyn for other in chosen}
        if len(chosen) < most and detection.concept not in keys and detection.box_xyxyn not in taken:
            chosen.append(detection)
    return chosen[: len(COLOURS)], tuple(key for key in keys if key not in by_key)
