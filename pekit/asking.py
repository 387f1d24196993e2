"""A run of VQA: where the concepts are, what is asked, what the LVLM replies, how it is graded.

Replies are appended to ``answers.jsonl`` as they come, so that an interrupted run goes on where it stopped; grading
comes after, and the published files are written at the end.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageShow
from tqdm import tqdm

from pekit import results
from pekit.answers import BASELINE, PERSONALISED, Answer, Query
from pekit.files import digest_if_readable, fitting, naming
from pekit.gallery import identity, load_gallery
from pekit.grading import Judge
from pekit.hub import identify, pick_device
from pekit.lvlm import Lvlm, LvlmSettings, Request, open_lvlm
from pekit.parallel import Shard, agree, gather, joined
from pekit.photos import open_image
from pekit.prompting import COLOURS, TASKS, Task, Wording, box_prompt, draw_boxes, text_prompt, with_options
from pekit.questions import Item, QuestionFile
from pekit.records import Concept, Detection, Gallery, LoadingSettings, ModelSettings, Photo, PhotoError, UserError
from pekit.retrieval import locate
from pekit.vqa_results import ANSWERS, SUMMARY, TEXT
from pekit.vqa_runs import (
    VqaReport,
    VqaSettings,
    describe_grading,
    describe_lvlm,
    finish,
    graded,
    held,
    kept,
    open_run,
    run_config,
    stored_answers,
    tell_kept,
)

log = logging.getLogger(__name__)

DRY_RUN_PROMPTS = 3


def run_vqa(
    questions: QuestionFile,
    concepts: Sequence[Concept],
    settings: VqaSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    lvlm_settings: LvlmSettings,
    judge: Judge | None,
    argv: Sequence[str],
    shard: Shard,
) -> VqaReport | None:
    """Ask the questions, grade the replies, write the results.

    Of several processes each looks for the concepts in its part of the photos; the first does the rest.

    Args:
        questions: from ``read_questions``.
        concepts: those known by name.
        settings: what to ask.
        models: of the recognition.
        loading: how photos are read.
        lvlm_settings: the LVLM.
        judge: of open answers; None where none is needed.
        argv: the command's options, to go on with or to grade again.
        shard: which of the processes this is.

    Returns:
        What came of it; None in all processes but the first.

    Raises:
        UserError: views or models are missing, or the run to go on with is another one.
    """
    replied, items = _still_to_ask(questions, settings)
    matched = {key for answer in replied for key in answer.query.concepts}
    gallery = find_gallery({*_concepts_of(items), *matched}, concepts, settings)
    if gallery:
        _check_views(settings, models, loading)
    if shard.rank:
        if gallery:
            with joined(shard):
                nothing: list[int] = []
                numbers = gather(nothing, shard)[0]  # the first process knows which questions are still to be asked
                todo = [item for item in items if item.number in numbers]
                locate_concepts(todo, gallery, settings, models, loading, shard)
        return None
    count = len({*(item.number for item in questions.items), *(answer.query.number for answer in replied)})
    config = run_config(questions, settings, models, loading, lvlm_settings, gallery, argv, count)
    lvlm = open_lvlm(lvlm_settings)
    if models.device != "auto":
        pick_device(models.device)  # before a folder is made for nothing
    folder = open_run(settings, lvlm_settings, config, None if TASKS[settings.task].others else matched)
    with kept(folder), nullcontext() if settings.resume else held(folder):
        done = {answer.query.identity for answer in replied}
        variants = (PERSONALISED, BASELINE) if settings.with_baseline else (PERSONALISED,)
        todo = [item for item in items if any((item.number, variant) not in done for variant in variants)]
        asked: list[Answer] = []
        located: dict[Path, list[Detection]] = {}
        if gallery and (todo or shard.world > 1):
            with joined(shard):
                gather([item.number for item in todo], shard)
                located = locate_concepts(todo, gallery, settings, models, loading, shard)
        if todo:
            queries = [query for query in plan(todo, located, concepts, settings) if query.identity not in done]
            asked = ask(queries, lvlm, replied, folder, config, settings, loading)
        verdicts = graded([*replied, *asked], settings.grader, judge, lvlm_settings.concurrency)
        describe_grading(folder, settings.grader, judge)
        report = finish(folder, verdicts, questions.left_out, settings.limit)
    if not report.complete:
        tell_kept(folder)
    return report


def _still_to_ask(questions: QuestionFile, settings: VqaSettings) -> tuple[list[Answer], Sequence[Item]]:
    """The replies of the run to go on with, but for those about photos that have changed since; the run's questions.

    A question that was answered before its photo vanished counts as one of them.
    """
    stored = stored_answers(settings.resume) if settings.resume else []
    replied = [answer for answer in stored if answer.reply is not None]
    items = {item.number: item for item in questions.items}
    changed = {
        number
        for number, digest in {(answer.query.number, answer.query.photo_digest) for answer in replied}
        if (item := items.get(number)) and _has_changed(item.question.photo, digest)
    }
    if outdated := [answer for answer in replied if answer.query.number in changed]:
        log.warning(
            "%s about photos that have changed since, such as %s: asking again",
            "1 reply is" if len(outdated) == 1 else f"{len(outdated)} replies are",
            outdated[0].query.photo_name,
        )
        replied = [answer for answer in replied if answer.query.number not in changed]
    if settings.limit is None:
        return replied, questions.items
    # Those that the run has answered first: a photo that was missing may be back and stand before them.
    answered = {answer.query.number for answer in replied}
    others = [number for number in items if number not in answered][: max(0, settings.limit - len(answered))]
    return replied, [item for item in questions.items if item.number in answered.union(others)]


def _has_changed(photo: Path | None, digest: str) -> bool:
    """Whether a photo can be read and is not the one of this digest; of one that cannot, the reply is all there is."""
    if photo is None or digest_if_readable(photo) == digest:
        return False
    try:
        open_image(photo)
    except PhotoError as error:
        log.warning("%s: the reply about it stays", error)
        return False
    return True


# --- where the concepts are ---------------------------------------------------------------------------------------


def _concepts_of(items: Iterable[Item]) -> set[str]:
    return {key for item in items for key in item.question.concepts}


def find_gallery(asked_about: set[str], concepts: Sequence[Concept], settings: VqaSettings) -> Gallery | None:
    """The views of the concepts asked about (of all, where others are outlined too); None where no box is drawn."""
    task = TASKS[settings.task]
    if not task.personalised or task.text_only:
        return None
    wanted = [concept for concept in concepts if task.others or concept.key in asked_about]
    return load_gallery(settings.views_folder, wanted, settings.variation, settings.n_training_views, settings.seed)


def _check_views(settings: VqaSettings, models: ModelSettings, loading: LoadingSettings) -> None:
    """Views and photos must go through the same models at the same size."""
    from pekit.detecting import check_views  # loads the recognition's libraries

    split = settings.split if TASKS[settings.task].captions else ""
    check_views(settings.views_folder, identify(models, ground=True, segment=False), models, loading, split)


def locate_concepts(
    items: Sequence[Item],
    gallery: Gallery,
    settings: VqaSettings,
    models: ModelSettings,
    loading: LoadingSettings,
    shard: Shard,
) -> dict[Path, list[Detection]]:
    """The best region in each photo of each concept asked about there, and where the task outlines others of each of
    the gallery; looked for once per photo, by one of the processes.

    Returns:
        Photo -> regions, best first; a photo that cannot be read has none.

    Raises:
        UserError: the processes have read different views.
    """
    from pekit.pipeline import Recognizer, match_photos

    agree(identity(gallery), "the views", shard)
    about: dict[Path, dict[str, None]] = {}  # photo -> concepts, each once
    names: dict[Path, str] = {}
    for question in (item.question for item in items):
        if question.photo:
            names[question.photo] = question.photo_name
            about.setdefault(question.photo, {}).update(dict.fromkeys(question.concepts))
    photos = shard.share([Photo(path, name) for path, name in names.items()])
    column = {key: place for place, key in enumerate(gallery.keys)}
    others = TASKS[settings.task].others
    least = -math.inf if settings.detect_thresh is None else settings.detect_thresh
    located: dict[Path, list[Detection]] = {}
    recognizer = Recognizer(models, ground=True) if photos else None
    matched = match_photos(recognizer, photos, gallery, loading) if recognizer else iter(())
    for matches in tqdm(matched, total=len(photos), desc="locating", unit="photo"):
        if matches.error:
            log.error("%s", matches.error)
        # a region of each of a thousand concepts would take more room than what the questions need
        wanted = gallery.keys if others else [key for key in about[matches.photo.path] if key in column]
        found = (locate(matches.best, matches.boxes_xyxy, column[key], key, models.size) for key in wanted)
        regions = [detection for detection in found if detection and detection.score > least]
        located[matches.photo.path] = sorted(regions, key=lambda detection: -detection.score)
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


# --- asking -------------------------------------------------------------------------------------------------------


def ask(
    queries: Sequence[Query],
    lvlm: Lvlm,
    replied: Sequence[Answer],
    folder: Path,
    config: dict,
    settings: VqaSettings,
    loading: LoadingSettings,
) -> list[Answer]:
    """Put the queries to the LVLM; each reply goes to ``answers.jsonl`` as it comes.

    Returns:
        An answer to each query; without a reply where the photo cannot be read or the LVLM gave none.
    """
    lvlm.load()
    describe_lvlm(folder, config, lvlm.describe())
    for former in (TEXT, SUMMARY):  # of a run that is gone on with: until it ends, they would tell of other answers
        (folder / former).unlink(missing_ok=True)
    results.write_jsonl(folder / ANSWERS, (answer.as_json() for answer in replied))
    answers: list[Answer] = []
    with (
        (folder / ANSWERS).open("a", encoding="utf-8") as file,
        tqdm(total=len(queries), desc="asking", unit="question") as progress,
    ):

        def keep(answer: Answer) -> None:
            answers.append(answer)
            with naming(folder / ANSWERS):
                file.write(results.json_line(answer.as_json()))
                file.flush()
            progress.update()
            if answer.error:
                log.error("%s: %s", answer.query.title, answer.error)

        def requests() -> Iterator[Request]:
            for query in queries:
                try:
                    image = picture(query, loading) if query.photo else None
                except PhotoError as error:
                    keep(Answer(query, None, str(error)))
                    continue
                if image is not None and query.variant == PERSONALISED:
                    if settings.overlays:
                        save_overlay(image, query, folder)
                    if settings.show:
                        show_overlay(image, query)
                yield Request(query, image, query.prompt)

        with closing(lvlm.answers(requests())) as replies:
            for request, reply in replies:
                keep(Answer(request.tag, reply.text, reply.error, reply.seconds))
    describe_lvlm(folder, config, lvlm.describe())  # by now it is known which parameters a server takes
    return answers


def picture(query: Query, loading: LoadingSettings) -> Image.Image:
    """The photo at its own size with the regions outlined.

    Raises:
        PhotoError: it cannot be read.
        UserError: the same, where ``--strict`` stops the run.
    """
    if query.photo is None:
        raise ValueError("a text-only question has no picture")
    try:
        return draw_boxes(open_image(query.photo, loading.exif), query.outlined)
    except PhotoError as error:
        if loading.strict:
            raise UserError(f"{error}; mend it, or give --strict False to go on without it") from None
        raise


def save_overlay(image: Image.Image, query: Query, folder: Path) -> Path:
    """Write what the LVLM is shown as ``overlays/<number>_<photo>.png``."""
    path = folder / "overlays" / f"{fitting(f'{query.number:04d}_{Path(query.photo_name).stem}')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def show_overlay(image: Image.Image, query: Query) -> None:
    """Open what the LVLM is shown in the system's viewer."""
    if not ImageShow.show(image, title=query.photo_name):
        _tell_of_no_viewer()


@cache
def _tell_of_no_viewer() -> None:
    """Once, not for every photo."""
    log.warning("--show: this system has no viewer; --overlays keeps the outlined photos")


def dry_run(questions: QuestionFile, concepts: Sequence[Concept], settings: VqaSettings, models: ModelSettings,
            loading: LoadingSettings) -> tuple[list[tuple[Query, Path | None]], bool]:  # fmt: skip
    """Word the first questions and write their overlays into ``<save_folder>/<task>/dry_run``; nobody is asked.

    Returns:
        Queries with their overlays, and whether all photos could be read.
    """
    folder = settings.save_folder / settings.task / "dry_run"
    items = questions.items[: settings.limit or DRY_RUN_PROMPTS]
    gallery = find_gallery(_concepts_of(items), concepts, settings)
    if gallery:
        _check_views(settings, models, loading)
    located = locate_concepts(items, gallery, settings, models, loading, Shard()) if gallery else {}
    shown: list[tuple[Query, Path | None]] = []
    complete = True
    for query in plan(items, located, concepts, settings):
        overlay = None
        if query.photo is not None and query.variant == PERSONALISED:
            try:
                image = picture(query, loading)
                overlay = save_overlay(image, query, folder)
                if settings.show:
                    show_overlay(image, query)
            except PhotoError as error:
                log.error("%s", error)
                complete = False
        shown.append((query, overlay))
    return shown, complete
