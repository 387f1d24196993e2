"""Results of a VQA run: counts with intervals, the published text and summary files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from pekit.answers import BASELINE, PERSONALISED, Answer
from pekit.files import write_atomically
from pekit.lvlm_interface import SERVED
from pekit.prompting import with_options
from pekit.questions import MISSING_PHOTO, LeftOut
from pekit.results import write_json

ANSWERS, CONFIG, TEXT, SUMMARY = "answers.jsonl", "config.json", "results_vqa.txt", "results_summary.json"


def model_folder(source: str) -> str:
    """The part of a result path that names the LVLM: a hub id as it is, the name of a local folder, a served name
    without slashes."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser().resolve().name
    return source.replace(":", "-").replace("/", "-") if source.startswith(SERVED) else source


def wilson_interval(correct: int, total: int) -> list[float | None]:
    """The 95 % score interval of a share, in per cent (Wilson 1927); nulls where nothing was counted."""
    if not total:
        return [None, None]
    z = 1.959963984540054
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return [round(100 * (centre - half), 6), round(100 * (centre + half), 6)]  # rounded: 0, not 3e-15


def _accuracy(verdicts: Iterable[bool | None]) -> dict:
    counted = [verdict for verdict in verdicts if verdict is not None]
    correct, total = sum(counted), len(counted)
    return {"correct": correct, "total": total, "accuracy": 100 * correct / total if total else None}


def _counts(answers: Sequence[Answer]) -> dict:
    """Accuracy with its interval; of captions also their recall."""
    counts = _accuracy(map(_correct, answers))
    recalls = [answer.verdict.recall for answer in answers if answer.verdict and answer.verdict.recall is not None]
    recall = {"caption_recall": 100 * sum(recalls) / len(recalls)} if recalls else {}
    return {**counts, "interval_95": wilson_interval(counts["correct"], counts["total"]), **recall}


def _correct(answer: Answer) -> bool | None:
    return answer.verdict.correct if answer.verdict else None


def tally(answers: Sequence[Answer]) -> dict:
    """Counts of one variant: per object, overall, by kind of question, the strict reading, what has no verdict.

    Totals count what was graded; questions without a reply or a verdict are counted apart.
    """
    lettered = [answer for answer in answers if answer.query.options]
    strict = [answer.verdict.strict_correct if answer.verdict else None for answer in lettered]
    subjects = dict.fromkeys(answer.query.subject for answer in answers)
    return {
        "per_object": {
            subject: _counts([answer for answer in answers if answer.query.subject == subject]) for subject in subjects
        },
        "overall": _counts(answers),
        "with_options": _accuracy(map(_correct, lettered)),
        "open": _accuracy(_correct(answer) for answer in answers if answer.query.open),
        "strict": {**_accuracy(strict), "differ": sum(_readings_differ(answer) for answer in lettered)},
        "unanswered": sum(answer.reply is None for answer in answers),
        "ungraded": sum(answer.reply is not None and _correct(answer) is None for answer in answers),
        "regions_not_found": sum(len(answer.query.not_found) for answer in answers if answer.reply is not None),
    }


def _readings_differ(answer: Answer) -> bool:
    verdict = answer.verdict
    return verdict is not None and verdict.correct is not None and verdict.letter != verdict.strict_letter


def summarise(answers: Sequence[Answer], left_out: Sequence[LeftOut]) -> dict:
    """Everything that ``results_summary.json`` holds."""
    own = [answer for answer in answers if answer.query.variant == PERSONALISED]
    baseline = [answer for answer in answers if answer.query.variant == BASELINE]
    missing = [entry for entry in left_out if entry.reason == MISSING_PHOTO]
    others = [entry for entry in left_out if entry.reason != MISSING_PHOTO]
    summary = tally(own)
    summary["missing_photos"] = {"count": len(missing), "photos": [entry.photo for entry in missing]}
    summary["left_out"] = {
        "count": len(others),
        "questions": [f"{entry.subject}, {entry.photo}: {entry.reason}" for entry in others],
    }
    summary["errors"] = [f"{a.query.title}: {a.error}" for a in answers if a.reply is None]
    summary["grading_errors"] = [
        f"{a.query.title}: {a.verdict.reason}"
        for a in answers
        if a.reply is not None and a.verdict and a.verdict.grader == "gpt" and a.verdict.correct is None
    ]
    if baseline:
        summary["baseline"] = tally(baseline)
    return summary


def question_text(answer: Answer) -> str:
    """One question as ``results_vqa.txt`` shows it."""
    query, verdict = answer.query, answer.verdict
    outcome = {True: "correct", False: "wrong", None: "not graded"}[_correct(answer)]
    if _correct(answer) is None and verdict and verdict.reason:
        outcome += f" ({verdict.reason})"
    if verdict and verdict.recall is not None:
        outcome = f"{verdict.recall:.0%} of the names"
    lines = [
        f"[{query.number}]" + (" baseline" if query.variant == BASELINE else ""),
        *([f"Photo: {query.photo_name}"] if query.photo_name else []),
        f"Concepts: {', '.join(query.concepts)}",
        *([f"Not found: {', '.join(query.not_found)}"] if query.not_found else []),
        f"Question: {with_options(query.question, query.options)}",
        f"Truth: {query.answer}",
        f"Prediction: {answer.reply or ''}",
        f"Result: {outcome}",
    ]
    # a line of its own in a reply would read like one of these
    return "".join(line.replace("\n", "\n  ") + "\n" for line in lines)


def summary_text(summary: dict) -> str:
    """The summary as a table, for people."""
    baseline = summary.get("baseline")
    rows = [*((name, name) for name in summary["per_object"]), ("all questions", None)]
    width = max(len(title) for title, _ in rows)
    lines = ["  ".join([f"{'':{width}}", "correct", "total", "accuracy", *(["baseline"] if baseline else [])])]
    for title, subject in rows:
        counts = summary["per_object"][subject] if subject else summary["overall"]
        line = f"{title:{width}}  {counts['correct']:7d}  {counts['total']:5d}  {_percent(counts['accuracy']):>8}"
        if baseline:
            other = baseline["per_object"].get(subject, {"accuracy": None}) if subject else baseline["overall"]
            line += f"  {_percent(other['accuracy']):>8}"
        lines.append(line)
    low, high = summary["overall"]["interval_95"]
    lines.append(f"95 % interval of all questions: {_percent(low)} to {_percent(high)}")
    if baseline:
        low, high = baseline["overall"]["interval_95"]
        lines.append(f"95 % interval of the baseline: {_percent(low)} to {_percent(high)}")
    for whose, counts in (("", summary["overall"]), (" of the baseline", baseline["overall"] if baseline else {})):
        if "caption_recall" in counts:
            lines.append(f"caption recall{whose}: {_percent(counts['caption_recall'])} of the names on average")
    for kind, title in (("with_options", "questions with options"), ("open", "open questions")):
        if summary[kind]["total"]:
            counts = summary[kind]
            lines.append(f"{title}: {counts['correct']} of {counts['total']}, {_percent(counts['accuracy'])}")
    if summary["with_options"]["total"]:
        strict = summary["strict"]
        lines.append(f"strict reading of letters: {_percent(strict['accuracy'])}; {strict['differ']} read differently")
    lines.append(f"not graded: {summary['ungraded']}; not answered: {summary['unanswered']}")
    if summary["regions_not_found"]:
        lines.append(f"concepts not outlined, as no region was found or similar enough: {summary['regions_not_found']}")
    missing = summary["missing_photos"]
    lines.append(f"missing photos: {missing['count']}" + "".join(f"\n  {photo}" for photo in missing["photos"]))
    if summary["left_out"]["count"]:
        entries = summary["left_out"]
        lines.append(f"left out: {entries['count']}" + "".join(f"\n  {line}" for line in entries["questions"]))
    lines += [f"no reply: {line}" for line in summary["errors"]]
    lines += [f"no verdict: {line}" for line in summary["grading_errors"]]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def write_results(folder: Path, answers: Sequence[Answer], left_out: Sequence[LeftOut]) -> dict:
    """Write ``results_vqa.txt`` and ``results_summary.json``; give the summary."""
    summary = summarise(answers, left_out)
    questions = "\n".join(question_text(answer) for answer in answers)
    write_atomically(folder / TEXT, f"{questions}\nSummary\n{summary_text(summary)}")
    write_json(folder / SUMMARY, summary)
    return summary
