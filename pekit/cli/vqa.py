"""``vqa.py``: question files to graded answers of an LVLM that is shown where the concepts are."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pekit import cli, datasets, parallel, question_places, questions
from pekit.answers import BASELINE, Query
from pekit.captioning import REQUEST, caption_requests
from pekit.chat import Patience
from pekit.cli.running import run_script, show
from pekit.grading import Judge, read_judge_settings
from pekit.lvlm_interface import LvlmSettings
from pekit.prompting import TASKS, Task
from pekit.records import Concept, UserError, counted
from pekit.results import read_config
from pekit.views import check_stored

if TYPE_CHECKING:  # torch comes with these
    from pekit.vqa_runs import VqaReport, VqaSettings

log = logging.getLogger(__name__)

GRADING = ("regrade", "grader", "config", "concurrency", "retries", "retry_wait", "timeout")
PLACES = ("data_folder", "features_folder", "save_folder")  # may have moved since


def build_parser() -> argparse.ArgumentParser:
    """The options of vqa.py."""
    parser = cli.Parser(
        prog="vqa.py",
        description="Ask an LVLM about personal objects, outlined and named in the photo, and grade its answers.",
        parents=[cli.data_options(), cli.model_options()],
        allow_abbrev=False,
    )
    _asking_options(parser.add_argument_group("asking"))
    _lvlm_options(parser.add_argument_group("LVLM"))
    _grading_options(parser.add_argument_group("grading and results"))
    return parser


def _asking_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--task",
        choices=tuple(TASKS),
        default="vqa",
        help="vqa: boxes and display names. vqa_names: the released invented names in their place. "
        "vqa_names_ambiguity: invented names, and the most similar other concept is outlined and named too; _full: all "
        "other concepts, up to eight boxes. base_vlm_...: the question alone, without boxes and names. tqa: questions "
        "about a description, without a photo. captioning: a caption of each test photo that shows a concept; "
        "reported is the share of the names that the captions hold. (vqa)",
    )
    group.add_argument(
        "--split", choices=("train", "test", "validation"), default="test",
        help="Split that photo paths may be relative to; for captioning, the photos' (test).",
    )  # fmt: skip
    group.add_argument(
        "--json_path", type=cli.path, help="Question file; may be left out where it lies in its usual place."
    )
    group.add_argument(
        "--descriptions", type=cli.path,
        help="For tqa: descriptions of the concepts, {name: text} or RAP's database (without it: a file named "
        "*descriptions*.json beside the questions).",
    )  # fmt: skip
    group.add_argument(
        "--caption_request", type=cli.sentence, metavar="TEXT",
        help=f"For captioning: what to ask for; <sks> stands for the concepts' names ({REQUEST})",
    )  # fmt: skip
    group.add_argument(
        "--detect_thresh", type=cli.threshold, metavar="T",
        help="Outline a concept only where its best region's similarity exceeds this (without it: always).",
    )  # fmt: skip
    cli.add_flag(group, "--with_baseline", "Also ask every question without boxes and names, for comparison.")
    cli.add_flag(group, "--overlays", "Keep the outlined photos in the run's folder.")
    cli.add_flag(group, "--show", "Open each outlined photo in the system's viewer.")
    cli.add_flag(group, "--dry_run", "Print the first prompts and write their outlined photos; ask nobody.")


def _lvlm_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--vlm_model",
        type=cli.checkpoint,
        help="Hub id, id@revision or folder of an image-text-to-text model of transformers, or openai:<name> for a "
        "served one (the one of --models; of paper OpenGVLab/InternVL3-14B).",
    )
    group.add_argument(
        "--vlm_base_url", default="", metavar="URL",
        help="Address of a server with the OpenAI chat API, such as http://localhost:8000/v1.",
    )  # fmt: skip
    group.add_argument(
        "--vlm_dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="Number format of the LVLM; auto is bfloat16 on a CUDA GPU, else float32.",
    )  # fmt: skip
    group.add_argument(
        "--prompt_style", choices=("released", "plain"), default="",
        help="released: 'USER: <image>\\n...\\nASSISTANT:' inside the model's chat template, as published (InternVL's "
        "default); plain: photo and prompt (the others' default).",
    )  # fmt: skip
    group.add_argument(
        "--system_message",
        type=cli.sentence,
        metavar="TEXT",
        help="A system message to begin with (none).",
    )
    group.add_argument("--max_new_tokens", type=cli.positive, default=50, help="Longest reply in tokens (50).")
    cli.add_flag(group, "--trust_remote_code", "Let the LVLM's own code from the hub run on this machine.")
    group.add_argument(
        "--concurrency", type=cli.positive, default=8, help="Requests in flight to a served LVLM or judge (8)."
    )
    group.add_argument("--retries", type=cli.natural, default=5, help="Further tries of a failed request (5).")
    group.add_argument(
        "--retry_wait",
        type=cli.seconds,
        default=1.0,
        metavar="S",
        help="Seconds before the first of them; then doubled (1).",
    )
    group.add_argument(
        "--timeout",
        type=cli.some_seconds,
        default=120.0,
        metavar="S",
        help="Seconds without a byte from the server, after which a request has failed (120).",
    )


def _grading_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--grader", choices=("gpt", "exact", "none"), default="gpt",
        help="Of open answers: a GPT judge set up in config.ini, exact match, or nobody (gpt). Options are always "
        "graded by their letter, captions by the names in them unless it is nobody.",
    )  # fmt: skip
    group.add_argument("--config", type=cli.path, default=Path("config.ini"), help="The judge's settings (config.ini).")
    group.add_argument(
        "--save_folder", type=cli.folder, default=Path("results/"), help="Folder of the results (results/)."
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", type=cli.path, metavar="DIR", help="Go on with an interrupted run, with its options."
    )
    either.add_argument(
        "--regrade",
        type=cli.path,
        metavar="DIR",
        help="Grade a run's replies again, into a folder beside it; ask nobody.",
    )


def main(argv: list[str] | None = None) -> int:
    """Run vqa.py.

    Returns:
        0, 1 where questions were not answered or graded, 2 for a mistake in options, files or models, 130 on Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    try:
        argv = _with_stored_options(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args = parser.parse_args(argv)
    return run_script(lambda: _command(args, argv), args, "--resume with the run's folder")


def _with_stored_options(argv: list[str]) -> list[str]:
    """Put the options of the run to go on with, or to grade again, before those given."""
    early = cli.Parser("vqa.py", add_help=False, allow_abbrev=False)
    early.add_argument("--resume", type=cli.path)
    early.add_argument("--regrade", type=cli.path)
    known, _ = early.parse_known_args(argv)
    run = known.resume or known.regrade
    if run is None:
        return argv
    config = read_config(run)
    stored, folder = config["argv"], config["working_folder"]
    if folder != Path.cwd().as_posix():
        print(f"the run was started in {folder}: relative paths of its options are read from here", file=sys.stderr)
    return [*stored, *argv]


def _command(args: argparse.Namespace, argv: list[str]) -> int:
    try:
        return _regrade(args) if args.regrade else _ask(args, argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # a run has said how to go on
        return 130


def _ask(args: argparse.Namespace, argv: list[str]) -> int:
    task = TASKS[args.task]
    unaided = task.text_only or not task.personalised
    models = cli.model_settings(args, () if unaided else ("grounding", "features"))
    if not args.resume:  # what it was begun with cannot be left out
        _check_task(args, task)
    concepts = question_places.known_concepts(cli.views_folder(args), args.dataset, args.multi_concept)
    if task.captions:
        found = _caption_requests(args, concepts)
    else:
        nameable = question_places.nameable_concepts(concepts, args.data_folder, args.dataset, args.multi_concept)
        found = _questions(args, nameable, None if unaided else frozenset(c.key for c in concepts))
        concepts = nameable if unaided else concepts
    _report(found, args)
    shard = parallel.current_shard()
    alone = args.dry_run or unaided  # no photo is searched, or hardly any
    if alone and shard.rank:
        return 0
    judge = None if args.dry_run or shard.rank else _judge(args, _any_open(args, task, found))
    if len(args.device_ids) > 1 and shard.world == 1 and not alone:
        return parallel.launch(main, argv, args.device, args.device_ids)

    from pekit import asking
    from pekit.vqa_runs import held

    settings, loading = _settings(args), cli.loading_settings(args)
    models = replace(models, device=parallel.shard_device(models.device, args.device_ids, shard))
    if args.dry_run:
        return _dry_run(*asking.dry_run(found, concepts, settings, models, loading), args.task)
    lvlm = _lvlm_settings(args)
    with held(args.resume) if args.resume and not shard.rank else nullcontext():
        report = asking.run_vqa(found, concepts, settings, models, loading, lvlm, judge, argv, shard)
    return _print(report) if report else 0


def _check_task(args: argparse.Namespace, task: Task) -> None:
    """Refuse options that the task has no use for.

    Raises:
        UserError: there is one.
    """
    outlines = task.personalised and not task.text_only
    for option, given, useful in (
        ("--with_baseline", args.with_baseline, task.personalised),
        ("--json_path", args.json_path, not task.captions),
        ("--caption_request", args.caption_request, task.captions),
        ("--descriptions", args.descriptions, task.text_only),
        ("--detect_thresh", args.detect_thresh is not None, outlines),
        ("--overlays", args.overlays, not task.text_only),
        ("--show", args.show, not task.text_only),
    ):
        if given and not useful:
            raise UserError(f"{option} is of no use for --task {args.task}: leave it out")


def _questions(
    args: argparse.Namespace, concepts: Sequence[Concept], askable: frozenset[str] | None
) -> questions.QuestionFile:
    """The question file that is named, or the one in the usual place."""
    text_only = TASKS[args.task].text_only
    file = args.json_path or question_places.find_question_file(
        args.data_folder, args.dataset, args.multi_concept, text_only
    )
    if askable is not None:
        check_stored(cli.views_folder(args))
    folders = question_places.photo_folders(file, args.data_folder, args.dataset, args.multi_concept, args.split)
    described = args.descriptions or (question_places.find_descriptions(file) if text_only else None)
    texts = questions.read_descriptions(described) if described else None
    found = questions.read_questions(file, concepts, folders, args.dataset, text_only, askable, texts)
    keyless = (item for item in found.items if not item.question.answer)
    if args.grader != "none" and (item := next(keyless, None)):
        raise UserError(
            f"{file}, '{item.subject}', '{item.question.photo_name}' has no correct_answer (or answer): mend the file, "
            "or give --grader none to leave open questions ungraded"
        )
    if args.descriptions and not any(item.question.context for item in found.items):
        raise UserError(
            f"{described} describes none of the concepts asked about, such as '{found.items[0].subject}': name "
            "another with --descriptions, or mend its names"
        )
    return found


def _caption_requests(args: argparse.Namespace, concepts: Sequence[Concept]) -> questions.QuestionFile:
    """A request for each photo that detection.py would test on and that shows a concept with views."""
    request = args.caption_request or REQUEST
    if re.search(r"\bsks\d?\b", request) and args.grader != "none":
        log.warning(
            "--caption_request tells the names, so that a reply, also of the baseline, counts as right if it repeats "
            "them: --grader none leaves replies ungraded"
        )
    where = args.data_folder, args.dataset, args.multi_concept
    part = datasets.positive_part(args.dataset, args.multi_concept, args.split)
    # the folders of pairs are named after all concepts, with views or not
    nameable = datasets.read_concepts(*where) if args.multi_concept else concepts
    _, photos = datasets.query_photos(*where, args.split, part, nameable)
    check_stored(cli.views_folder(args))
    shown = {key for photo in photos for key in photo.concepts}
    if args.dataset == "myvlm" and (tested := [concept for concept in concepts if concept.key in shown]):
        from pekit.gallery import load_gallery, without_references

        views = load_gallery(cli.views_folder(args), tested, args.variation, args.n_training_views, args.seed)
        photos = without_references(photos, views)
    begun = read_config(args.resume)["questions"].get("photos", ()) if args.resume else ()
    return caption_requests(photos, concepts, request, datasets.find_root(*where), begun)


def _report(found: questions.QuestionFile, args: argparse.Namespace) -> None:
    what, to_do = ("photo", " to caption") if TASKS[args.task].captions else ("question", "")
    log.info("%s%s in %s", counted(len(found.items), what), to_do, found.path)
    by_reason: dict[str, list[str]] = {}
    for entry in found.left_out:
        by_reason.setdefault(entry.reason, []).append(f"'{entry.subject}', {entry.photo}")
    for reason, left_out in by_reason.items():
        log.warning("left out: %s, such as %s: %s", counted(len(left_out), what), left_out[0], reason)
    without = dict.fromkeys(item.subject for item in found.items if args.task == "tqa" and not item.question.context)
    if without:
        names = ", ".join(list(without)[: questions.SHOWN])
        log.warning("without a description (--descriptions), so that their questions are asked alone: %s", names)


def _settings(args: argparse.Namespace) -> VqaSettings:
    from pekit.vqa_runs import VqaSettings

    named = (field.name for field in fields(VqaSettings) if field.name != "views_folder")
    return VqaSettings(views_folder=cli.views_folder(args), **{name: getattr(args, name) for name in named})


def _patience(args: argparse.Namespace) -> Patience:
    return Patience(args.retries + 1, args.retry_wait, args.timeout)


def _lvlm_settings(args: argparse.Namespace) -> LvlmSettings:
    return LvlmSettings(
        source=args.vlm_model or cli.model_set(args.models)["lvlm"],
        base_url=args.vlm_base_url,
        prompt_style=args.prompt_style,
        system_message=args.system_message,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        device=args.device,
        device_ids=args.device_ids,
        dtype=args.vlm_dtype,
        trust_remote_code=args.trust_remote_code,
        concurrency=args.concurrency,
        patience=_patience(args),
    )


def _any_open(args: argparse.Namespace, task: Task, found: questions.QuestionFile) -> bool:
    """Whether the run has open questions, or has stored replies to such."""
    if args.resume and _has_open_replies(args.resume):
        return True  # whose photos may have gone since
    return not task.captions and any(not item.question.options for item in found.items[: args.limit])


def _has_open_replies(run: Path) -> bool:
    from pekit.vqa_runs import stored_answers

    return any(answer.query.open for answer in stored_answers(run))


def _judge(args: argparse.Namespace, open_questions: bool) -> Judge | None:
    """The judge where open answers need one; a missing key is found before any model is loaded."""
    if args.grader != "gpt" or not open_questions:
        return None
    return Judge(read_judge_settings(args.config), _patience(args), args.save_folder / "judge_cache")


def _regrade(args: argparse.Namespace) -> int:
    from pekit import vqa_runs

    begun = vars(build_parser().parse_args(read_config(args.regrade)["argv"]))
    for name, value in vars(args).items():
        if value != begun[name] and name not in GRADING + PLACES:
            raise UserError(f"--{name} is of no use for --regrade, which asks nothing anew: leave it out")
    judge = _judge(args, _has_open_replies(args.regrade))
    return _print(vqa_runs.regrade(args.regrade, args.grader, judge, args.concurrency))


def _print(report: VqaReport) -> int:
    show(report.table)
    show(f"results in {report.folder}")
    return 0 if report.complete else 1


def _dry_run(shown: list[tuple[Query, Path | None]], complete: bool, task: str) -> int:
    for query, overlay in shown:
        of = f"{task}, the baseline" if query.variant == BASELINE else task
        show(f"[{query.number}] {of}: {overlay or query.photo_name or 'no photo'}\n{query.prompt}\n")
    return 0 if complete else 1
