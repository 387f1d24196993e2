"""Folders of VQA runs: what a run was made with, going on with an interrupted one, its end, grading it again."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from pekit import results
from pekit.answers import BASELINE, Answer
from pekit.files import digest_if_readable, naming
from pekit.gallery import digests, identity
from pekit.grading import Judge, grade
from pekit.hub import identify, versions
from pekit.lvlm_interface import LvlmSettings
from pekit.questions import Item, LeftOut, QuestionFile
from pekit.records import Detection, Gallery, LoadingSettings, ModelSettings, Photo, UserError
from pekit.vqa_results import ANSWERS, CONFIG, model_folder, summary_text, write_results

log = logging.getLogger(__name__)

REGIONS = "regions-*.jsonl"

# Settings that may differ between a run and its continuation: the replies do not depend on them.
FREE = {
    "settings": {"split", "views_folder", "save_folder", "grader", "overlays", "show", "resume"},
    "model_settings": {"device", "compile", "offline"},
    "lvlm_settings": {"base_url", "batch_size", "device", "device_ids", "concurrency", "patience"},
}
OPTIONS = {
    ("model_settings", "grounding"): "--grounding_model",
    ("model_settings", "masks"): "--sam_model",
    ("model_settings", "features"): "--dino_model",
    ("model_settings", "size"): "--dino_img_size",
    ("lvlm_settings", "source"): "--vlm_model",
    ("lvlm_settings", "dtype"): "--vlm_dtype",
}  # other settings are called like their options


@dataclass(frozen=True)
class VqaSettings:
    """What to ask; the fields are vqa.py's options.

    Attributes:
        split: whose photos are captioned, or that photo paths may be relative to.
        views_folder: folder of the stored views.
        detect_thresh: similarity that a region must exceed; None takes the best region whatever it is.
        seed: of the draw of views.
        resume: folder of the run to go on with.
    """

    dataset: str
    multi_concept: bool
    split: str
    task: str
    variation: str
    n_training_views: int
    views_folder: Path
    detect_thresh: float | None
    seed: int
    limit: int | None
    with_baseline: bool
    overlays: bool
    show: bool
    grader: str
    save_folder: Path
    resume: Path | None = None


def run_config(questions: QuestionFile, settings: VqaSettings, models: ModelSettings, loading: LoadingSettings,
               lvlm: LvlmSettings, gallery: Gallery | None, argv: Sequence[str], count: int) -> dict:  # fmt: skip
    """Everything a run depends on, as ``config.json`` holds it; ``count`` is how many questions it has."""
    views = {}
    if gallery:
        models_used = identify(models, ground=True, segment=False)
        views = {"models": models_used, **identity(gallery), "digests": digests(gallery)}
    return results.plain(
        {
            "argv": list(argv),
            "working_folder": Path.cwd(),
            "settings": asdict(settings),
            "model_settings": asdict(models),
            "loading": asdict(loading),
            "lvlm_settings": asdict(lvlm),
            "questions": {
                "file": questions.path,
                "digest": questions.digest,
                "count": count,
                **({"photos": questions.photos} if questions.photos else {}),
            },
            "left_out": [asdict(entry) for entry in questions.left_out],
            "views": views,
            "versions": versions(),
        }
    )


def open_run(settings: VqaSettings, lvlm: LvlmSettings, config: dict, matched: Set[str] | None) -> Path:
    """The folder of a new run, or of the one to go on with.

    Args:
        settings: of the run.
        lvlm: the LVLM.
        config: from ``run_config``.
        matched: concepts whose views the replies that are there depend on; None where they depend on those of all.

    Raises:
        UserError: the run to go on with asked something else.
    """
    if settings.resume is None:
        folder = results.new_run_folder(settings.save_folder / settings.task / model_folder(lvlm.source))
        results.write_config(folder, config)
        return folder
    stored = results.read_config(settings.resume)
    difference = _difference(stored, config, matched)
    if difference:
        raise UserError(
            f"--resume {settings.resume} is a run with another {difference}: leave --resume out to start anew"
        )
    return settings.resume


def _difference(stored: dict, config: dict, matched: Set[str] | None) -> str:
    """The first setting on which replies depend and that differs; "" where none does."""
    for group, free in FREE.items():
        for name, value in config[group].items():
            if name not in free and stored[group].get(name) != value:
                return f"{OPTIONS.get((group, name), f'--{name}')} ({stored[group].get(name)}, not {value})"
    if stored["loading"]["exif"] != config["loading"]["exif"]:
        return "--exif"
    if stored["questions"]["digest"] != config["questions"]["digest"]:
        captions = config["settings"]["task"] == "captioning"
        return "--caption_request" if captions else "set of questions or descriptions"
    views, others = stored["views"], config["views"]
    prints = [{role: m["fingerprint"] for role, m in some.get("models", {}).items()} for some in (views, others)]
    if prints[0] != prints[1]:
        return "set of models"
    if views and "digests" not in views:  # of an earlier version
        return "" if views["views_digest"] == others.get("views_digest") else "set of views"
    before, now = views.get("digests", {}), others.get("digests", {})
    changed = (key for key in {**before, **now} if before.get(key) != now.get(key))
    return next((f"set of views of '{key}'" for key in changed if matched is None or key in matched), "")


class KeptRegions:
    """The regions that a run has found, on disk until it ends: looking for them takes as long as asking, or longer.

    Each process appends to a file of its own in the run's folder.

    Args:
        folder: of the run.
        gallery: regions found with other views do not count.
        all_concepts: of every photo all concepts of the gallery are looked for, not those asked about alone.
        rank: of the process.
    """

    def __init__(self, folder: Path, gallery: Gallery, all_concepts: bool, rank: int) -> None:
        self._folder, self._views, self._all = folder, identity(gallery)["views_digest"], all_concepts
        self._own = folder / f"regions-{rank}.jsonl"

    def of(self, items: Iterable[Item]) -> dict[Path, list[Detection]]:
        """Photo -> regions, of the photos that are still the same and in which all that is asked about was looked for.

        For the first process, before the others append.
        """
        known: dict[str, list[dict]] = {}
        files = sorted(self._folder.glob(REGIONS))
        for record in (record for file in files for record in results.read_jsonl(file)):
            if record["views"] == self._views:
                known.setdefault(record["photo_digest"], []).append(record)
        # without lines that were cut short, as more follow
        results.write_jsonl(self._own, (record for records in known.values() for record in records))
        for file in files:
            if file != self._own:
                file.unlink()
        asked: dict[Path, set[str]] = {}
        for item in items:
            if item.question.photo:
                asked.setdefault(item.question.photo, set()).update(item.question.concepts)
        found = {}
        for photo, concepts in asked.items():
            for record in known.get(digest_if_readable(photo), ()):
                if self._all or concepts.issubset(record["concepts"]):
                    found[photo] = [Detection.from_json(region) for region in record["regions"]]
        return found

    def keep(self, photo: Photo, concepts: Iterable[str], regions: Sequence[Detection]) -> None:
        """Add those of one photo, in which these concepts were looked for."""
        record = {
            "photo": photo.name,
            "photo_digest": digest_if_readable(photo.path),
            "views": self._views,
            "concepts": sorted(concepts),
            "regions": [region.as_json() for region in regions],
        }
        with naming(self._own), self._own.open("a", encoding="utf-8") as file:
            file.write(results.json_line(record))


def describe_lvlm(folder: Path, config: dict, description: dict) -> None:
    """Add to ``config.json`` which LVLM it is.

    Raises:
        UserError: replies of another one are there already.
    """
    stored = results.read_config(folder)
    known = stored.get("lvlm", description)
    if known.get("fingerprint") != description.get("fingerprint"):
        raise UserError(
            f"{folder} holds replies of another LVLM ({known['fingerprint']}): name that one or leave --resume out"
        )
    begun = {name: stored[name] for name in ("argv", "working_folder")}
    results.write_json(folder / CONFIG, {**config, **begun, "lvlm": description})


def describe_grading(folder: Path, grader: str, judge: Judge | None) -> None:
    """Put into ``config.json`` how a run was graded in the end, which may not be what it began with."""
    config = results.read_config(folder)
    config["settings"]["grader"] = grader
    results.write_json(folder / CONFIG, {**config, "judge": judge.describe() if judge else None})


def stored_answers(folder: Path) -> list[Answer]:
    """The answers of a run, without their verdicts; none where it was stopped before the first."""
    file = folder / ANSWERS
    try:
        return [Answer.from_json(record) for record in results.read_jsonl(file)] if file.is_file() else []
    except (LookupError, TypeError) as error:
        raise UserError(f"{file} holds a line that is no answer ({error!r}): remove it; it is asked again") from None


# --- its end ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VqaReport:
    """What came of a run.

    Attributes:
        folder: the run's.
        summary: what ``results_summary.json`` holds.
        table: the same for people.
        complete: every question has a reply and, but for those that ``--grader none`` leaves ungraded, a verdict.
    """

    folder: Path
    summary: dict
    table: str
    complete: bool


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from going on with a run.

    Raises:
        UserError: one does.
    """
    lock = results.claim(folder)
    if lock is None:
        raise UserError(f"{folder}: that run is still going on in another process: wait for it, or stop it")
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.close()


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Say how to go on with a run that is stopped or fails."""
    try:
        yield
    except (KeyboardInterrupt, Exception):
        tell_kept(folder)
        raise


def tell_kept(folder: Path) -> None:
    """Say how to go on with a run that has not come to its end."""
    log.warning("what is finished is kept; go on with --resume %s", folder)


def graded(answers: Sequence[Answer], grader: str, judge: Judge | None, concurrency: int) -> list[Answer]:
    """Grade answers, in the order of the questions.

    Raises:
        UserError: the judge refuses every request.
    """
    with closing(grade(answers, grader, judge, concurrency)) as verdicts:
        found = list(tqdm(verdicts, total=len(answers), desc="grading", unit="answer"))
    return sorted(found, key=lambda answer: (answer.query.number, answer.query.variant == BASELINE))


def finish(folder: Path, verdicts: Sequence[Answer], left_out: Sequence[LeftOut], limit: int | None) -> VqaReport:
    """Write the results of graded answers.

    Of ``left_out`` count neither questions that were answered before their photo vanished, nor those beyond the last
    one of a limited run.
    """
    asked = {answer.query.number for answer in verdicts}
    last = math.inf if limit is None else max(asked, default=0)
    left_out = [entry for entry in left_out if entry.number not in asked and entry.number <= last]
    results.write_jsonl(folder / ANSWERS, (answer.as_json() for answer in verdicts))
    summary = write_results(folder, verdicts, left_out)
    if empty := sum(answer.reply is not None and not answer.reply.strip() for answer in verdicts):
        log.warning("%s empty: the model said nothing", "1 reply is" if empty == 1 else f"{empty} replies are")
    judged = all(a.verdict and (a.verdict.correct is not None or a.verdict.grader == "none") for a in verdicts)
    complete = judged and not summary["errors"]
    for file in folder.glob(REGIONS) if complete else ():
        file.unlink()  # nothing is left to ask
    return VqaReport(folder, summary, summary_text(summary), complete)


def regrade(run: Path, grader: str, judge: Judge | None, concurrency: int) -> VqaReport:
    """Grade the replies of a run again, into a folder beside its own that is made when all are graded.

    Raises:
        UserError: the run has no replies, or the judge refuses every request.
    """
    run = run.resolve()  # the name of "." is needed
    config, answers = results.read_config(run), stored_answers(run)
    if not answers:
        raise UserError(f"{run} holds no replies that could be graded: go on with it by --resume {run}")
    questions, settings = config["questions"]["count"], config["settings"]
    asked = Counter(number for number, _ in {answer.query.identity for answer in answers})
    whole = sum(times == 1 + settings["with_baseline"] for times in asked.values())
    missing = max(0, min(questions, settings["limit"] or questions) - whole)
    verdicts = graded(answers, grader, judge, concurrency)
    folder = results.new_run_folder(run.parent, "-regraded")
    results.write_json(folder / CONFIG, {**config, "regraded_from": run.name})
    describe_grading(folder, grader, judge)
    report = finish(folder, verdicts, [LeftOut(**entry) for entry in config["left_out"]], settings["limit"])
    if missing:
        log.warning("%d of %d questions were not asked: --resume %s first", missing, missing + whole, run)
    return replace(report, complete=report.complete and not missing)
