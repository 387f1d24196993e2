"""Letter rules, exact match, the judge and its settings; the judge against a server that fails on purpose."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from vqa_fixtures import NO_COMPLETIONS, SECRET, ChatServer, prompt_of

from pekit import grading
from pekit.answers import PERSONALISED, Answer, Query
from pekit.chat import Patience
from pekit.endpoint import Endpoint
from pekit.grading import JUDGE_INSTRUCTION, Judge, JudgeSettings, grade, read_judge_settings, read_verdict
from pekit.matching import exact_match, released_letter, strict_letter
from pekit.records import UserError
from pekit.vqa_results import tally

QUICK = Patience(attempts=4, first_wait=0.01, timeout=5)


def answered(reply: str | None, key: str, options: dict[str, str] | None = None, number: int = 1) -> Answer:
    query = Query(number, PERSONALISED, "bo", "0.png", ("bo",), "What is it?", options or {}, key, "prompt")
    return Answer(query, reply, "" if reply is not None else "the server was away")


# --- letters ---


@pytest.mark.parametrize(
    ("reply", "released", "strict"),
    [
        ("A", "A", "A"),
        ("b", "B", "B"),
        (" B. ", "B", "B"),
        ("\nb\n", "B", "B"),
        ("A.red", "A", "A"),
        ("B) blue", "B", "B"),
        ("(B)", "B", "B"),
        ("(A) red", "A", "A"),
        ("Actually, it is B", "A", "B"),
        ("Answer: B", "A", "B"),
        ("Both are wrong", "B", ""),
        ("The answer is B.", "B", "B"),
        ("The answer is B", "", "B"),
        ("It is b.", "B", "B"),
        ("It is a. red", "A", "A"),
        ("Option (a) or (b)", "A", ""),
        ("A red one", "A", "A"),  # by the option's text; the A is an article
        ("A mug", "A", ""),
        ("A is right", "A", "A"),
        ("A or B", "A", ""),
        ("It is blue", "", "B"),
        ("The blue one, not the red one", "", ""),
        ("Plan C.", "", ""),
        ("", "", ""),
        ("Red.", "", "A"),
        ("I see a. b) both", "A", ""),
        ("It's Bob's", "", ""),
    ],
)
def test_letters(reply: str, released: str, strict: str) -> None:
    assert released_letter(reply, ["A", "B"]) == released
    assert strict_letter(reply, {"A": "red", "B": "blue"}) == strict


def test_three_options() -> None:
    assert released_letter("c", ["A", "B", "C"]) == "C"
    assert released_letter("I think c) fits", ["A", "B", "C"]) == "C"
    assert strict_letter("It is C", {"A": "x", "B": "y", "C": "z"}) == "C"


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("Dark red.", {"A": "red", "B": "dark red"}, "B"),
        ("It is dark red", {"A": "red", "B": "dark red"}, ""),
        ("Vitamin B", {"A": "Vitamin B", "B": "iron"}, "A"),
        ("b", {"A": "B", "B": "C"}, "B"),  # a bare letter is a letter
        ("", {"A": "A", "B": "the"}, ""),
        *((f"A{mark} dog", {"A": "cat", "B": "dog"}, "A") for mark in (".", ")", ":", " .")),
        ("a. Dog.", {"A": "cat", "B": "dog"}, "A"),
        ("B. cat", {"A": "cat", "B": "dog"}, "B"),
        ("A dog.", {"A": "cat", "B": "dog"}, "B"),
        ("It is y", {"a]": "x", "^": "y"}, "^"),
        ("a].", {"a]": "x", "^": "y"}, "A]"),
        ("", {"A": "+", "B": "blue"}, ""),
        ("+", {"A": "-", "B": "+"}, "B"),
        ("-5", {"A": "5", "B": "-5"}, "B"),
        ("B", {"a": "red", "b": "blue"}, "B"),
        ("It is blue", {"a": "red", "b": "blue"}, "B"),
    ],
)
def test_strict_letter_of_odd_options(reply: str, options: dict[str, str], letter: str) -> None:
    assert strict_letter(reply, options) == letter


def test_more_than_nine_options() -> None:
    numbers = [str(n) for n in range(1, 13)]
    assert [released_letter(reply, numbers) for reply in ("12", "1", "it is 11.", "1.")] == ["12", "1", "11", "1"]
    [graded] = grade([answered("1", "12", dict.fromkeys(numbers, "x"))], "none", None)
    assert graded.verdict and (graded.verdict.correct, graded.verdict.strict_correct) == (False, False)
    [graded] = grade([answered("12", "12", dict.fromkeys(numbers, "x"))], "none", None)
    assert graded.verdict and (graded.verdict.correct, graded.verdict.strict_correct) == (True, True)


def test_options_are_graded_by_the_released_rule_with_the_strict_one_beside_it() -> None:
    [graded] = grade([answered("Actually, it is B", "B", {"A": "red", "B": "blue"})], "none", None)
    verdict = graded.verdict
    assert verdict and verdict.grader == "letter"
    assert (verdict.correct, verdict.letter, verdict.strict_letter, verdict.strict_correct) == (False, "A", "B", True)
    [graded] = grade([answered("b", "b", {"A": "red", "B": "blue"})], "gpt", None)
    assert graded.verdict and graded.verdict.correct is True
    [graded] = grade([answered("No idea", "A", {"A": "red", "B": "blue"})], "gpt", None)
    assert graded.verdict and graded.verdict.correct is False and graded.verdict.letter == ""


def test_readings_differ_by_their_letters_right_or_wrong() -> None:
    options = {"A": "red", "B": "blue", "C": "green"}
    answers = [answered(reply, "C", options) for reply in ("Actually, it is B", "A", "Actually, it is C", "C")]
    counts = tally(list(grade(answers, "none", None)))
    # released: A, A, A, C; strict: B, A, C, C
    assert (counts["overall"]["correct"], counts["strict"]["correct"], counts["strict"]["differ"]) == (1, 2, 2)


# --- exact ---


@pytest.mark.parametrize(
    ("reply", "key", "same"),
    [
        ("Blue", "blue", True),
        ("  The blue hat. ", "blue hat", True),
        ("Alex\u2019s hat", "Alex's hat", True),
        ("\u201cAlexs hat\u201d", "Alex's hat!", True),
        ("on  a table", "on the table", True),
        ("dark blue", "blue", False),
        ("", "blue", False),
        ("caf\u00e9", "cafe", False),
        ("", "A", False),
        ("a", "A.", True),
        ("", "?", False),
        ("-", "+", False),
        (" ? ", "?", True),
        ("5", "-5", False),
        ("It is \u22125.", "it is -5", True),
        ("3-5", "3 5", True),
    ],
)
def test_exact_match(reply: str, key: str, same: bool) -> None:
    assert exact_match(reply, key) is same


def test_graders_of_open_answers() -> None:
    answers = [answered("Blue.", "blue"), answered("red", "blue"), answered(None, "blue")]
    assert [a.verdict.correct for a in grade(answers, "exact", None) if a.verdict] == [True, False, None]
    ungraded = list(grade(answers, "none", None))
    assert [(a.verdict.correct, a.verdict.grader) for a in ungraded if a.verdict] == [(None, "none")] * 3
    reasons = [a.verdict.reason for a in ungraded if a.verdict]
    assert reasons == ["--grader none", "--grader none", "the server was away"]


# --- the judge ---


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes", True), ("yes.", True), ("YES", True), ("**Yes**", True), ("Yes, they mean the same.", True),
        ("No", False), ("no!", False), (" No, it differs", False), ("\u201cNo\u201d", False),
        ("Not sure", None), ("Nope", None), ("", None), ("Yes and no", None), ("Maybe yes", None), ("None", None),
        ("yesterday", None), ("42", None),
    ],
)  # fmt: skip
def test_verdicts(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


def write_config(folder: Path, **values: str) -> Path:
    path = folder / "config.ini"
    path.write_text("[openai]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()), "utf-8")
    return path


def judge_at(server: ChatServer, folder: Path, patience: Patience = QUICK, model: str = "judge-1") -> Judge:
    config = write_config(
        folder, OPENAI_API_BASE=server.url, OPENAI_API_KEY=SECRET, OPENAI_CHAT_MODEL=model, TEMP="0", MAX_TOKENS="5"
    )
    return Judge(read_judge_settings(config, {}), patience, folder / "cache")


def test_what_the_judge_is_asked(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes") as server:
        verdict = judge_at(server, tmp_path).verdict("What colour is Alex's hat?", "blue", "It is navy.")
    assert (verdict.correct, verdict.grader, verdict.reason) == (True, "gpt", "Yes")
    [body] = server.bodies
    assert body["messages"] == [
        {"role": "system", "content": JUDGE_INSTRUCTION},
        {
            "role": "user",
            "content": "Question: What colour is Alex's hat?\nCorrect answer: blue\nPrediction: It is navy.",
        },
    ]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 5)
    assert server.keys == [f"Bearer {SECRET}"] and server.paths == ["/v1/chat/completions"]


def test_the_judge_reads_key_and_reply_as_they_are_written(tmp_path: Path) -> None:
    """Case may tell one meaning from another."""
    with ChatServer(lambda body, n: "Yes" if "Prediction: The US" in prompt_of(body) else "No") as server:
        judge = judge_at(server, tmp_path)
        graded = list(grade([answered(reply, "In the US") for reply in ("The US", "The us")], "gpt", judge))
    verdicts = {answer.reply: answer.verdict.correct for answer in graded if answer.verdict}
    assert verdicts == {"The US": True, "The us": False}
    assert {prompt_of(body) for body in server.bodies} == {
        f"Question: What is it?\nCorrect answer: In the US\nPrediction: {reply}" for reply in ("The US", "The us")
    }


@pytest.mark.parametrize(
    ("replies", "correct", "asked"),
    [
        (["Yes"], True, 1),
        (["no"], False, 1),
        (["Not sure", "", "No"], False, 3),
        ([None, "Yes"], True, 2),
        ([(429, "slow down"), (500, "broken"), (503, "busy"), "Yes"], True, 4),
        ([(400, "content filter"), "No"], False, 2),
        (["Not sure"] * 9, None, 4),
        ([(429, "slow down")] * 9, None, 4),
        ([""] * 9, None, 4),
    ],
)
def test_judge_retries_then_leaves_ungraded(tmp_path: Path, replies: list, correct: bool | None, asked: int) -> None:
    with ChatServer(lambda body, n: replies[n]) as server:
        verdict = judge_at(server, tmp_path).verdict("?", "blue", "green")
    assert verdict.correct is correct and verdict.grader == "gpt"
    assert len(server.bodies) == asked
    assert bool(list((tmp_path / "cache").glob("*.json"))) is (correct is not None)  # only verdicts are kept
    assert SECRET not in verdict.reason
    if correct is None and isinstance(replies[0], tuple):
        assert "RateLimitError" in verdict.reason and "***" in verdict.reason


@pytest.mark.parametrize("sent", NO_COMPLETIONS)
def test_what_is_no_chat_completion_is_tried_again_then_ungraded(tmp_path: Path, sent: bytes) -> None:
    with ChatServer(lambda body, n: sent if n else "Not sure") as server:
        verdict = judge_at(server, tmp_path).verdict("?", "blue", "green")
        assert len(server.bodies) == 4
    assert verdict.correct is None
    assert verdict.reason == "the reply is no chat completion: check the address (it usually ends in /v1)"


def test_what_the_judge_says_can_be_written(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes \ud83d") as server:
        assert judge_at(server, tmp_path).verdict("?", "blue", "green").reason == "Yes ?"
    assert "Yes ?" in next((tmp_path / "cache").iterdir()).read_text()


def test_waits_grow_and_heed_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: (429, "slow down") if n < 3 else "Yes") as server:
        judge = judge_at(server, tmp_path, Patience(attempts=4, first_wait=2, timeout=5))
        waits: list[float] = []
        monkeypatch.setattr(judge._chat._stopped, "wait", lambda seconds: waits.append(seconds))
        assert judge.verdict("?", "a", "b").correct is True
    assert waits == [2, 4, 8]
    with ChatServer(lambda body, n: (429, "slow down") if n < 1 else "Yes", headers={"Retry-After": "0.6"}) as server:
        judge_at(server, tmp_path, Patience(attempts=2, first_wait=0.01, timeout=5)).verdict("?", "a", "c")
    assert server.times[1] - server.times[0] >= 0.6


def test_no_wait_is_longer_than_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for headers, expected in (({}, [20, 40, 60, 60]), ({"Retry-After": "3600"}, [60, 60, 60, 60])):
        with ChatServer(lambda body, n: (429, "slow down") if n < 4 else "Yes", headers=headers) as server:
            judge = judge_at(
                server, tmp_path, Patience(attempts=5, first_wait=20, timeout=5), model=f"judge-{len(headers)}"
            )
            waits: list[float] = []
            monkeypatch.setattr(judge._chat._stopped, "wait", lambda seconds, waits=waits: waits.append(seconds))
            assert judge.verdict("?", "a", "b").correct is True
        assert waits == expected


def test_any_number_of_tries_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = JudgeSettings(Endpoint("the judge", "judge-1", SECRET, "http://127.0.0.1:1/v1"), {})
    judge = Judge(settings, Patience(attempts=1100, first_wait=0), tmp_path)  # 2 ** 1024 is no float
    monkeypatch.setattr(judge._chat, "_completion", lambda *_: b'{"choices": []}')
    assert judge.verdict("?", "a", "b").reason == "the server gave no text"


def test_time_outs_are_retried(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes", delay=0.6) as server:
        verdict = judge_at(server, tmp_path, Patience(attempts=2, first_wait=0.01, timeout=0.2)).verdict("?", "a", "b")
        assert len(server.bodies) == 2
    assert verdict.correct is None and "APITimeoutError" in verdict.reason


def test_no_server_stops_the_run_and_is_named(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes") as server:
        judge = judge_at(server, tmp_path, Patience(attempts=2, first_wait=0.01, timeout=1))
    with pytest.raises(UserError, match=f"nobody answers at {server.address}.*refused.*start the server"):
        judge.verdict("?", "a", "b")


def test_an_address_that_no_connection_reaches_stops_the_run_and_is_named(tmp_path: Path) -> None:
    """As behind a firewall: what is sent is dropped without a word."""
    with socket.socket() as listening, socket.socket() as waiting, socket.socket() as another:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for full in (waiting, another):  # nobody accepts them
            full.setblocking(False)
            full.connect_ex(listening.getsockname())
        base = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        endpoint = Endpoint("the judge", "judge-1", SECRET, base)
        judge = Judge(JudgeSettings(endpoint, {}), Patience(attempts=1, first_wait=0.01, timeout=0.5), tmp_path)
        with pytest.raises(UserError, match=f"nobody answers at {base}.*timed out"):
            judge.verdict("?", "a", "b")


def test_a_server_that_drops_a_request_is_there(tmp_path: Path) -> None:
    """It may be this question alone that it fails at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drop() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                connection.recv(1000)
                connection.close()

        threading.Thread(target=drop, daemon=True).start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        endpoint = Endpoint("the judge", "judge-1", SECRET, base)
        judge = Judge(JudgeSettings(endpoint, {}), Patience(attempts=2, first_wait=0.01, timeout=5), tmp_path)
        verdict = judge.verdict("?", "a", "b")
    assert verdict.correct is None and "APIConnectionError" in verdict.reason


def test_a_server_that_goes_after_a_while_leaves_ungraded(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes") as server:
        judge = judge_at(server, tmp_path, Patience(attempts=2, first_wait=0.01, timeout=1))
        assert judge.verdict("?", "blue", "green").correct
    verdict = judge.verdict("?", "blue", "red")
    assert verdict.correct is None and "APIConnectionError" in verdict.reason and "refused" in verdict.reason


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_server_does_not_take_is_not_sent_again(tmp_path: Path, status: int) -> None:
    with ChatServer(lambda body, n: (status, "the picture is too large") if n == 0 else "Yes") as server:
        judge = judge_at(server, tmp_path)
        assert judge.verdict("?", "blue", "green").correct is None and len(server.bodies) == 1
        assert judge.verdict("?", "blue", "navy").correct is True


@pytest.mark.parametrize("field", ["code", "type"])
def test_spent_credit_stops_the_run(tmp_path: Path, field: str) -> None:
    spent = (429, "You exceeded your current quota", {field: "insufficient_quota"})
    with ChatServer(lambda body, n: spent if n else "Yes") as server:
        judge = judge_at(server, tmp_path)
        assert judge.verdict("?", "blue", "green").correct
        with pytest.raises(UserError, match=r"status 429.*credit"):
            judge.verdict("?", "blue", "red")
        assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refused_key_stops_the_run_without_showing_it(tmp_path: Path, status: int) -> None:
    quoted = "Incorrect API key provided: sk-test-5e******seen" if status == 404 else "Who is 5ecr****seen?"
    with ChatServer(lambda body, n: (status, quoted)) as server:
        with pytest.raises(UserError) as caught:
            list(grade([answered("green", "blue")] * 3, "gpt", judge_at(server, tmp_path), concurrency=1))
        assert len(server.bodies) == 1
    assert "config.ini" in str(caught.value)
    assert SECRET not in str(caught.value) and "sk-test" not in str(caught.value)
    assert "5ecr" not in str(caught.value) and "seen" not in str(caught.value)
    assert (f"status {status}" in str(caught.value)) is (status != 404)


@pytest.mark.parametrize("quoted", [SECRET, "5ecr****seen", "5ecret-...-seen", "5ecret-********", "sk-5ecret"])
def test_a_key_that_a_busy_server_quotes_is_not_kept(tmp_path: Path, quoted: str) -> None:
    said = f"Rate limit reached for key '{quoted}', wait 20 s"
    with ChatServer(lambda body, n: (429, said)) as server:
        verdict = judge_at(server, tmp_path).verdict("?", "a", "b")
    assert "5ecr" not in verdict.reason and "seen" not in verdict.reason
    assert "Rate limit reached for key" in verdict.reason and "wait 20 s" in verdict.reason


def test_cache_asks_once_for_the_same_content(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes" if n == 0 else "No") as server:
        for _ in range(3):
            assert judge_at(server, tmp_path).verdict("Q?", "blue", "navy").correct is True
        assert len(server.bodies) == 1
        for number, (question, key, reply, model) in enumerate(
            [
                ("Q2?", "blue", "navy", "judge-1"),
                ("Q?", "red", "navy", "judge-1"),
                ("Q?", "blue", "teal", "judge-1"),
                ("Q?", "blue", "navy", "judge-2"),
                ("Q?bl", "ue", "navy", "judge-1"),
            ]
        ):
            judge = judge_at(server, tmp_path, model=model)
            assert judge.verdict(question, key, reply).correct is False
            assert len(server.bodies) == number + 2
    for file in (tmp_path / "cache").iterdir():
        assert SECRET not in file.read_text()


def test_cache_tells_judges_apart_and_outlives_damage(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes") as one, ChatServer(lambda body, n: "No") as other:
        assert judge_at(one, tmp_path).verdict("Q?", "blue", "navy").correct is True
        assert judge_at(other, tmp_path).verdict("Q?", "blue", "navy").correct is False
        for file in (tmp_path / "cache").iterdir():
            file.write_text("")
        assert judge_at(one, tmp_path).verdict("Q?", "blue", "navy").correct is True
        assert (len(one.bodies), len(other.bodies)) == (2, 1)
        warmer = write_config(
            tmp_path, OPENAI_API_BASE=one.url, OPENAI_API_KEY=SECRET, OPENAI_CHAT_MODEL="judge-1", TEMP="1"
        )
        judge = Judge(read_judge_settings(warmer, {}), QUICK, tmp_path / "cache")
        judge.verdict("Q?", "blue", "navy")
        assert len(one.bodies) == 3
    described = judge.describe()
    assert (described["model"], described["base_url"], described["parameters"]) == (
        "judge-1",
        one.url,
        {"temperature": 1},
    )
    assert SECRET not in json.dumps(described)


def test_verdicts_of_another_instruction_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: "No" if n else "Yes") as server:
        assert judge_at(server, tmp_path).verdict("?", "blue", "navy").correct is True
        monkeypatch.setattr(grading, "JUDGE_VERSION", grading.JUDGE_VERSION + 1)
        assert judge_at(server, tmp_path).verdict("?", "blue", "navy").correct is False


def test_grading_runs_at_the_concurrency_asked_for(tmp_path: Path) -> None:
    def judged(body: dict, n: int) -> str:
        return "Yes" if prompt_of(body).endswith("reply 3") else "No"

    answers = [answered(f"reply {n}", "blue", number=n) for n in range(12)]
    with ChatServer(judged, delay=0.1) as server:
        graded = list(grade(answers, "gpt", judge_at(server, tmp_path), concurrency=4))
    assert server.most_at_once == 4
    assert {a.query.number: a.verdict.correct for a in graded if a.verdict} == {n: n == 3 for n in range(12)}


def test_a_refusal_does_not_wait_for_what_is_tried_again(tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> tuple[int, str]:
        return (401, "no") if prompt_of(body).endswith("reply 0") else (429, "slow down")

    began = time.monotonic()
    with ChatServer(answer) as server:
        judge = judge_at(server, tmp_path, Patience(attempts=2, first_wait=50, timeout=5))
        with pytest.raises(UserError):
            list(grade([answered(f"reply {n}", "blue") for n in (0, 1)], "gpt", judge, concurrency=2))
    assert time.monotonic() - began < 25


def test_what_is_the_same_is_judged_once(tmp_path: Path) -> None:
    replies = ["navy", "teal", "navy", "navy"]
    answers = [answered(reply, "blue", number=n) for n, reply in enumerate(replies)]
    with ChatServer(lambda body, n: "Yes" if "navy" in prompt_of(body) else "No", delay=0.05) as server:
        graded = list(grade(answers, "gpt", judge_at(server, tmp_path), concurrency=4))
        assert len(server.bodies) == 2
    assert {a.query.number: a.verdict.correct for a in graded if a.verdict} == {0: True, 1: False, 2: True, 3: True}


def test_a_judge_cut_short_is_told_and_not_asked_again(tmp_path: Path) -> None:
    cut = b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}'
    with ChatServer(lambda body, n: cut) as server:
        verdict = judge_at(server, tmp_path).verdict("Q?", "blue", "navy")
        assert len(server.bodies) == 1
    assert verdict.correct is None and "MAX_TOKENS" in verdict.reason


def test_what_a_filter_has_cut_is_no_verdict(tmp_path: Path) -> None:
    cut = b'{"choices": [{"message": {"content": "No"}, "finish_reason": "content_filter"}]}'
    with ChatServer(lambda body, n: "Yes" if n else cut) as server:
        assert judge_at(server, tmp_path).verdict("?", "blue", "navy").correct is True
        assert len(server.bodies) == 2


# --- settings ---


@pytest.mark.parametrize("quote", ["", '"', "'", '" '])
def test_config_values_quoted_or_not(tmp_path: Path, quote: str) -> None:
    names = {
        "OPENAI_API_TYPE": "azure", "OPENAI_API_VERSION": "2024-10-21", "OPENAI_API_BASE": "https://me.example.com",
        "OPENAI_API_KEY": "50%(off)s", "OPENAI_CHAT_MODEL": "gpt", "TEMP": "0.5", "MAX_TOKENS": "7",
    }  # fmt: skip
    settings = read_judge_settings(
        write_config(tmp_path, **{name: f"{quote}{value}{quote}" for name, value in names.items()}), {}
    )
    endpoint = settings.endpoint
    assert (endpoint.kind, endpoint.api_version, endpoint.base_url) == ("azure", "2024-10-21", "https://me.example.com")
    assert (endpoint.key, endpoint.model) == ("50%(off)s", "gpt")
    assert settings.parameters == {"temperature": 0.5, "max_tokens": 7}
    assert "50%" not in repr(settings)


def test_comments_behind_values(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, OPENAI_API_KEY="a#b;c", OPENAI_CHAT_MODEL="gpt  ; the judge", TEMP="0 # greedy", MAX_TOKENS=" # none"
    )
    settings = read_judge_settings(config, {})
    assert (settings.endpoint.key, settings.endpoint.model) == ("a#b;c", "gpt")
    assert settings.parameters == {"temperature": 0}


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "warm"])
def test_a_temperature_that_is_none(tmp_path: Path, value: str) -> None:
    config = write_config(tmp_path, OPENAI_API_KEY=SECRET, OPENAI_CHAT_MODEL="gpt", TEMP=value)
    with pytest.raises(UserError, match=r"TEMP in .*config\.ini is not a number"):
        read_judge_settings(config, {})


def test_empty_parameters_are_not_sent(tmp_path: Path) -> None:
    config = write_config(tmp_path, OPENAI_API_KEY=SECRET, OPENAI_CHAT_MODEL="gpt", TEMP="", MAX_TOKENS="")
    assert read_judge_settings(config, {}).parameters == {}


def test_environment_stands_above_the_file(tmp_path: Path) -> None:
    config = write_config(tmp_path, OPENAI_API_KEY="file", OPENAI_CHAT_MODEL="gpt", OPENAI_API_BASE="https://file")
    environment = {"OPENAI_API_KEY": "env", "OPENAI_BASE_URL": "https://env", "AZURE_OPENAI_API_KEY": "azure"}
    endpoint = read_judge_settings(config, environment).endpoint
    assert (endpoint.key, endpoint.base_url) == ("env", "https://env")
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        read_judge_settings(config, {"OPENAI_API_KEY": "env\n", "OPENAI_BASE_URL": "env:80"})
    azure = write_config(
        tmp_path, OPENAI_API_TYPE="azure", OPENAI_CHAT_MODEL="gpt", OPENAI_API_BASE="https://f", OPENAI_API_VERSION="1"
    )
    assert (
        read_judge_settings(azure, {"AZURE_OPENAI_API_KEY": "azure", "OPENAI_API_KEY": "env"}).endpoint.key == "azure"
    )


def test_openais_key_is_not_sent_to_the_server_that_the_file_names(tmp_path: Path) -> None:
    environment = {"OPENAI_API_KEY": "env\n"}
    other = write_config(tmp_path, OPENAI_API_KEY="file", OPENAI_CHAT_MODEL="gpt", OPENAI_API_BASE="https://other/v1")
    assert read_judge_settings(other, environment).endpoint.key == "file"
    for address in ("", "https://api.openai.com/v1"):
        own = write_config(tmp_path, OPENAI_API_KEY="file", OPENAI_CHAT_MODEL="gpt", OPENAI_API_BASE=address)
        assert read_judge_settings(own, environment).endpoint.key == "env"
    keyless = write_config(tmp_path, OPENAI_CHAT_MODEL="gpt", OPENAI_API_BASE="https://other/v1")
    with pytest.raises(UserError, match=r"set OPENAI_API_KEY in .*config\.ini, as its server is not OpenAI's"):
        read_judge_settings(keyless, environment)
    both = environment | {"OPENAI_BASE_URL": "https://other/v1"}
    assert read_judge_settings(keyless, both).endpoint.key == "env"


@pytest.mark.parametrize("section", ["openai", "OpenAI", "DEFAULT"])
def test_the_section_in_any_case(tmp_path: Path, section: str) -> None:
    (tmp_path / "config.ini").write_text(f"[{section}]\nOPENAI_API_KEY = k\nOPENAI_CHAT_MODEL = gpt\n")
    assert read_judge_settings(tmp_path / "config.ini", {}).endpoint.key == "k"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.ini is no file, name it by --config"):
        read_judge_settings(tmp_path / "nosuch.ini", {})


def test_azure_is_asked_at_its_deployment(tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "Yes") as server:
        config = write_config(
            tmp_path, OPENAI_API_TYPE='"Azure"', OPENAI_API_VERSION='"2024-10-21"',
            OPENAI_API_BASE=f'"{server.address}"', OPENAI_API_KEY=f'"{SECRET}"', OPENAI_CHAT_MODEL='"my-deployment"',
        )  # fmt: skip
        judge = Judge(read_judge_settings(config, {}), QUICK, tmp_path / "cache")
        assert judge.verdict("?", "a", "b").correct is True
    assert server.paths == ["/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"]
    assert server.keys == [SECRET]
    assert judge.describe() == {
        "model": "my-deployment", "kind": "azure", "base_url": server.address, "api_version": "2024-10-21",
        "parameters": {}, "instruction_version": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"OPENAI_CHAT_MODEL": "gpt"}, ["config.ini", "OPENAI_API_KEY", "--grader exact"]),
        ({"OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_KEY": '""'}, ["config.ini", "OPENAI_API_KEY"]),
        ({"OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_TYPE": "azure"}, ["config.ini", "AZURE_OPENAI_API_KEY"]),
        ({"OPENAI_API_KEY": SECRET}, ["OPENAI_CHAT_MODEL"]),
        ({"OPENAI_API_KEY": SECRET, "OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_TYPE": "azure"}, ["OPENAI_API_BASE"]),
        ({"OPENAI_API_KEY": SECRET, "OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_TYPE": "other"}, ["OPENAI_API_TYPE"]),
        ({"OPENAI_API_KEY": SECRET, "OPENAI_CHAT_MODEL": "gpt", "TEMP": "warm"}, ["TEMP"]),
        (
            {"OPENAI_API_KEY": SECRET, "OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_BASE": "https://me:pw@host"},
            ["config.ini", "OPENAI_API_BASE", "password"],
        ),
        *(
            ({"OPENAI_API_KEY": SECRET, "OPENAI_CHAT_MODEL": "gpt", "OPENAI_API_BASE": url}, ["OPENAI_API_BASE"])
            for url in ("localhost:8000/v1", "http://host:99999/v1", "http://[::1/v1", "me:pw@host/v1", "http://a..b/")
        ),
        ({"OPENAI_API_KEY": "schl\u00fcssel", "OPENAI_CHAT_MODEL": "gpt"}, ["config.ini", "its key"]),
    ],
)
def test_faulty_settings_are_named(tmp_path: Path, values: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_judge_settings(write_config(tmp_path, **values), {})
    for word in words:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value) and "pw" not in str(caught.value)


def test_a_file_that_cannot_be_read_does_not_show_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_text(f"OPENAI_API_KEY = {SECRET}\n")
    with pytest.raises(UserError, match=r"config\.ini") as caught:
        read_judge_settings(path, {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("again", "name"), [("[openai]\nTEMP = 0\n", "openai"), ("OPENAI_API_KEY = b\n", "openai_api_key")]
)
def test_what_stands_twice_is_named(tmp_path: Path, again: str, name: str) -> None:
    config = write_config(tmp_path, OPENAI_API_KEY=SECRET, OPENAI_CHAT_MODEL="gpt")
    config.write_text(config.read_text() + again)
    with pytest.raises(UserError) as caught:
        read_judge_settings(config, {})
    assert str(caught.value) == f"'{name}' stands twice in {config}, again in line 4: remove one"


def test_the_file_that_is_shipped_needs_only_a_key() -> None:
    shipped = Path(__file__).parents[1] / "config.ini"
    settings = read_judge_settings(shipped, {"OPENAI_API_KEY": SECRET})
    assert settings.endpoint.kind == "openai" and settings.endpoint.base_url == "" and settings.endpoint.model
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        read_judge_settings(shipped, {})
