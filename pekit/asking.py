"""A run of VQA: where the concepts are, what is asked, what the LVLM replies, how it is graded.

Regions are appended to ``regions-0.jsonl`` and replies to ``answers.jsonl`` as they come, so that an interrupted run
goes on where it stopped; grading comes after, and the published files are written at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path

from PIL import Image, ImageShow
from tqdm import tqdm

from pekit import results
from pekit.answers import BASELINE, PERSONALISED, Answer, Query
from pekit.files import digest_if_readable, fitting, naming
from pekit.grading import Judge
from pekit.hub import pick_device
from pekit.lvlm import open_lvlm
from pekit.lvlm_interface import Lvlm, LvlmSettings, Request
from pekit.parallel import Shard, gather, joined
from pekit.photos import open_image
from pekit.planning import concepts_of, find_gallery, locate_concepts, plan
from pekit.prompting import TASKS, draw_boxes
from pekit.questions import Item, QuestionFile
from pekit.records import Concept, Detection, LoadingSettings, ModelSettings, PhotoError, UserError
from pekit.vqa_results import ANSWERS, SUMMARY, TEXT
from pekit.vqa_runs import (
    KeptRegions,
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
    gallery = find_gallery({*concepts_of(items), *matched}, concepts, settings, models, loading)
    all_concepts = TASKS[settings.task].others > 0
    if shard.rank:
        if gallery:
            with joined(shard):
                # the first process knows the run's folder, and which photos are still to be searched
                folder, numbers = gather((Path(), set[int]()), shard)[0]
                left = [item for item in items if item.number in numbers]
                regions = KeptRegions(folder, gallery, all_concepts, shard.rank)
                locate_concepts(left, gallery, settings, models, loading, shard, regions.keep)
        return None
    count = len({*(item.number for item in questions.items), *(answer.query.number for answer in replied)})
    config = run_config(questions, settings, models, loading, lvlm_settings, gallery, argv, count)
    lvlm = open_lvlm(lvlm_settings)
    if models.device != "auto":
        pick_device(models.device)  # before a folder is made for nothing
    done = {answer.query.identity for answer in replied}
    variants = (PERSONALISED, BASELINE) if settings.with_baseline else (PERSONALISED,)
    todo = [item for item in items if any((item.number, variant) not in done for variant in variants)]
    if todo:
        lvlm.check()
        if judge:
            judge.check()
    folder = open_run(settings, lvlm_settings, config, None if all_concepts else matched)
    with kept(folder), nullcontext() if settings.resume else held(folder):
        asked: list[Answer] = []
        located: dict[Path, list[Detection]] = {}
        if gallery and (todo or shard.world > 1):
            with joined(shard):
                regions = KeptRegions(folder, gallery, all_concepts, shard.rank)
                located = regions.of(todo)
                left = [item for item in todo if item.question.photo not in located]
                gather((folder, {item.number for item in left}), shard)
                located |= locate_concepts(left, gallery, settings, models, loading, shard, regions.keep)
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
    gallery = find_gallery(concepts_of(items), concepts, settings, models, loading)
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
