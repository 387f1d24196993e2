"""The records of a VQA run: what is asked, what came back, the verdict; and their form in ``answers.jsonl``."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path

from pekit.prompting import COLOURS
from pekit.records import Detection

PERSONALISED, BASELINE = "personalised", "baseline"


@dataclass(frozen=True)
class Query:
    """One thing to ask the LVLM.

    Attributes:
        number: place of the question in its file.
        variant: ``PERSONALISED``, or ``BASELINE`` for the same question without boxes, names and context.
        subject: the file's key; results are counted under it.
        photo_name: the photo's path as the file writes it; empty for text-only questions.
        concepts: keys of the concepts asked about.
        question: its text with names filled in, without options.
        options: letter -> text; empty for an open question.
        answer: the key.
        prompt: the text given to the LVLM, before the model's own wrap.
        outlined: regions drawn on the photo, in the order of the colours.
        names: their names.
        not_found: concepts asked about without a region.
        identifiers: names that the reply, a caption, is to hold; empty for questions.
        gpt_answer: an answer that the file quotes, for the record.
        photo_digest: of the photo's content.
        photo: where the photo lies; not kept in records.
    """

    number: int
    variant: str
    subject: str
    photo_name: str
    concepts: tuple[str, ...]
    question: str
    options: dict[str, str]
    answer: str
    prompt: str
    outlined: tuple[Detection, ...] = ()
    names: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    gpt_answer: str = ""
    photo_digest: str = ""
    photo: Path | None = None

    @property
    def identity(self) -> tuple[int, str]:
        return self.number, self.variant

    @property
    def open(self) -> bool:
        """Whether it is a question whose answer is free text."""
        return not self.options and not self.identifiers

    @property
    def title(self) -> str:
        """How messages name it: ``question 3 (baseline), pig-cup, 0.png``."""
        number = f"question {self.number}" + (" (baseline)" if self.variant == BASELINE else "")
        return ", ".join(part for part in (number, self.subject, self.photo_name) if part)


@dataclass(frozen=True)
class Verdict:
    """How a reply was graded.

    Attributes:
        correct: None where it could not be graded.
        grader: "letter", "names", "exact", "gpt" or "none".
        letter: the option read from the reply by the released rule; empty for open questions or where none is read.
        strict_letter: the same by the strict reading.
        strict_correct: whether the strict reading is right; None for open questions.
        reason: the judge's words, or why there is no verdict.
        recall: of a caption, the share of the identifiers that it holds; None for questions.
    """

    correct: bool | None
    grader: str
    letter: str = ""
    strict_letter: str = ""
    strict_correct: bool | None = None
    reason: str = ""
    recall: float | None = None


@dataclass(frozen=True)
class Answer:
    """A query and its outcome.

    Attributes:
        query: what was asked.
        reply: the LVLM's words as they came; None where it gave none.
        error: why there is no reply.
        seconds: time of the reply (of its share of a batch).
        verdict: None before grading.
    """

    query: Query
    reply: str | None
    error: str = ""
    seconds: float = 0.0
    verdict: Verdict | None = None

    def as_json(self) -> dict:
        query = self.query
        record = {name: value for name, value in asdict(query).items() if name not in ("photo", "outlined", "names")}
        record["regions"] = [
            {**detection.as_json(), "name": name, "colour": colour}
            for detection, name, colour in zip(query.outlined, query.names, COLOURS, strict=False)
        ]
        record |= {"reply": self.reply, "error": self.error, "seconds": round(self.seconds, 3)}
        return record | (asdict(self.verdict) if self.verdict else {})

    @staticmethod
    def from_json(record: dict) -> Answer:
        """Read a line of ``answers.jsonl``; the verdict is left to be made again."""
        fields = {f.name: record[f.name] for f in dataclasses.fields(Query) if f.name in record}
        fields |= {name: tuple(record[name]) for name in ("concepts", "not_found")}
        fields["identifiers"] = tuple(record.get("identifiers", ()))  # runs of earlier versions have none
        regions = record["regions"]
        outlined = tuple(map(Detection.from_json, regions))
        query = Query(**fields, outlined=outlined, names=tuple(region["name"] for region in regions))
        return Answer(query, record["reply"], record["error"], record["seconds"])
