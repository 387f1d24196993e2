"""Folders of VQA runs: what a run was made with, going on with an interrupted one, grading a finished one again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pekit import results
from pekit.answers import Answer
from pekit.cli import LoadingSettings, ModelSettings
from pekit.gallery import identity
from pekit.hub import identify, versions
from pekit.lvlm import LvlmSettings
from pekit.questions import LeftOut, QuestionFile
from pekit.records import Gallery, UserError
from pekit.vqa_results import ANSWERS, CONFIG, model_folder

# Settings that may differ between a run and its continuation: the replies do not depend on them.
FREE = {
    "settings": {"views_folder", "save_folder", "grader", "overlays", "show", "resume"},
    "model_settings": {"device", "compile", "offline"},
    "lvlm_settings": {"base_url", "batch_size", "device", "device_ids", "concurrency", "patience"},
}


@dataclass(frozen=True)
class VqaSettings:
    """What to ask; the fields are vqa.py's options.

    Attributes:
        views_folder: folder of the stored views.
        detect_thresh: similarity that a region must exceed; None takes the best region whatever it is.
        seed: of the draw of views.
        resume: folder of the run to go on with.
    """

    dataset: str
    multi_concept: bool
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
               lvlm: LvlmSettings, gallery: Gallery | None, argv: Sequence[str]) -> dict:  # fmt: skip
    """Everything a run depends on, as ``config.json`` holds it."""
    views = {}
    if gallery:
        views = {"models": identify(models, ground=True, segment=False), **identity(gallery)}
    return results.plain(
        {
            "argv": list(argv),
            "settings": asdict(settings),
            "model_settings": asdict(models),
            "loading": asdict(loading),
            "lvlm_settings": asdict(lvlm),
            "questions": {"file": questions.path, "digest": questions.digest, "count": len(questions.items)},
            "left_out": [asdict(entry) for entry in questions.left_out],
            "views": views,
            "versions": versions(),
        }
    )


def read_config(folder: Path) -> dict:
    """The ``config.json`` of a run.

    Raises:
        UserError: the folder is none of a run.
    """
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder of a run of vqa.py ({error}): name one that holds {CONFIG}") from None


def open_run(settings: VqaSettings, lvlm: LvlmSettings, config: dict) -> Path:
    """The folder of a new run, or of the one to go on with.

    Raises:
        UserError: that one asked something else.
    """
    if settings.resume is None:
        folder = results.new_run_folder(settings.save_folder / settings.task / model_folder(lvlm.source))
        results.write_json(folder / CONFIG, config)
        return folder
    stored = read_config(settings.resume)
    difference = _difference(stored, config)
    if difference:
        raise UserError(
            f"--resume {settings.resume} is a run with another {difference}: leave --resume out to start anew"
        )
    return settings.resume


def _difference(stored: dict, config: dict) -> str:
    """The first setting on which replies depend and that differs; "" where none does."""
    for group, free in FREE.items():
        for name, value in config[group].items():
            if name not in free and stored[group].get(name) != value:
                return f"{name} ({stored[group].get(name)}, not {value})"
    for name in ("questions", "views"):
        if stored[name].get("digest") != config[name].get("digest"):
            return f"set of {name}"
    return "exif" if stored["loading"]["exif"] != config["loading"]["exif"] else ""


def describe_lvlm(folder: Path, config: dict, description: dict) -> None:
    """Add to ``config.json`` which LVLM it is.

    Raises:
        UserError: replies of another one are there already.
    """
    stored = read_config(folder)
    known = stored.get("lvlm", description)
    if known.get("fingerprint") != description.get("fingerprint"):
        raise UserError(f"{folder} holds replies of another LVLM ({known['fingerprint']}): leave --resume out")
    results.write_json(folder / CONFIG, {**config, "argv": stored["argv"], "lvlm": description})


def stored_answers(folder: Path) -> list[Answer]:
    """The answers of a run, without their verdicts; none where it was stopped before the first."""
    file = folder / ANSWERS
    return [Answer.from_json(record) for record in results.read_jsonl(file)] if file.is_file() else []


def open_regrade(run: Path, grader: str) -> tuple[Path, list[LeftOut]]:
    """A new folder beside a run's, for other verdicts, and what the run left out."""
    config = read_config(run)
    folder = results.new_run_folder(run.absolute().parent, "-regraded")
    results.write_json(folder / CONFIG, {**config, "regraded_from": run.name, "regraded_by": grader})
    return folder, [LeftOut(**entry) for entry in config["left_out"]]
