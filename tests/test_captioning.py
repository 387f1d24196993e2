"""vqa.py --task captioning: which photos are captioned, how, and what counts as naming a concept."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    Shared,
    assert_ran,
    assert_refused,
    write_multi,
    write_myvlm,
    write_photos,
    write_this_is_my,
    write_yollava,
)
from vqa_fixtures import ChatServer, build_lvlm_folder, images_of, prompt_of

from pekit.answers import PERSONALISED, Answer, Query
from pekit.cli import extraction
from pekit.cli.vqa import main
from pekit.grading import grade
from pekit.matching import named_in
from pekit.records import View
from pekit.views import save_view, view_file, views_folder

Call = Callable[..., subprocess.CompletedProcess[str]]
PEOPLE = ("Casey-man", "Alexs hat-hat", "Caseys boosted board-skateboard")
VIEW = View("mug", "0.png", 0, np.ones((2, 8), dtype=np.float32), np.ones(8, dtype=np.float32))
PAIR = "Casey_and_Caseys boosted board"
BOXED = (
    'In this image, the entity enclosed in a blue box is called "{}". Never mention the boxes and their colors. '
    "Answer the following question: Please caption this image."
)


@pytest.fixture(scope="session")
def world(shared: Shared, models: Path) -> Path:
    """data/ of the three benchmarks, features/ with a view of each concept but yollava's "new-thing"."""

    def build(folder: Path) -> None:
        data = write_yollava(folder / "data", ("pig-cup", "lamp", "new-thing"), train=1, test=2)
        write_myvlm(data, ("red_bull", "my_cat"), photos=3)
        write_this_is_my(data, PEOPLE[:2], train=1, test=1)
        write_multi(data, PEOPLE, [PAIR], train=1, test=2)
        build_lvlm_folder(folder / "lvlm")
        rng = np.random.default_rng(0)
        width = json.loads((models / "features/config.json").read_text())["hidden_size"]
        for dataset, multi, concepts, photo in (
            ("yollava", False, ("pig-cup", "lamp"), "0"),
            ("myvlm", False, ("red_bull", "my_cat"), "{}_0"),
            ("this-is-my", False, PEOPLE[:2], "v0"),
            ("this-is-my", True, PEOPLE, "v0"),
        ):
            for concept in concepts:
                patches = rng.normal(size=(2, width)).astype(np.float32)
                stem = photo.format(concept)
                views = views_folder(folder / "features", dataset, multi, False)
                save_view(view_file(views, concept, stem, 0), View(concept, stem, 0, patches, patches.mean(0)))

    return shared("captioning", build)


@pytest.fixture
def ask(world: Path, models: Path, call: Call, no_keys: Path) -> Call:
    """Caption in this process, without keys, results in the test's own folder."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        where = ("--data_folder", world / "data", "--features_folder", world / "features", "--models", models)
        few = ("--num_workers", 0, "--n_training_views", 1, "--save_folder", "results", "--task", "captioning")
        return call(main, *where, *few, *options)

    return run


def served(server: ChatServer) -> tuple[object, ...]:
    return ("--vlm_model", "openai:test", "--vlm_base_url", server.url, "--retries", 0)


def results(folder: Path) -> tuple[list[dict], dict]:
    """Records and summary of the only run."""
    (file,) = folder.rglob("results_summary.json")
    lines = (file.parent / "answers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads(file.read_text())


@pytest.mark.parametrize(
    ("caption", "name", "there"),
    [
        ("PIG-CUP stands on a table.", "pig-cup", True),
        ("The pig cup stands there", "pig-cup", True),
        ("A cup like a pig", "pig-cup", False),
        ("Bo's nose", "Bo", True),
        ("Someone about to eat", "bo", False),  # no whole word
        ("Vexed", "Vex", False),
        ("ALEX\u2019S HAT on a chair", "Alex's hat", True),
        ("Alexs  hat", "Alex's hat", True),
        ("Alex wears a hat", "Alex's hat", False),
        ("Rene\u0301's cafe\u0301", "Ren\u00e9's caf\u00e9", True),
        ("This is a.b", "a.b", True),
        ("This is axb", "a.b", False),
        ("", "bo", False),
        ("LORD OF THE RINGS on a shelf", "lord-of-the-rings", True),
        ("a cat on a mat", "the cat", False),
        ("my_mug, broken", "my mug", True),
        ("\u5c0f\u732b\u5728\u684c\u5b50\u4e0a", "\u5c0f\u732b", True),  # no spaces between words
        ("\u6211\u7684\u5c0f\u732b\u5728\u684c\u5b50\u4e0a", "\u5c0f\u732b", True),
        ("Zo\u00e9line waves", "Zo\u00e9", False),
        ("Robot 21 stands there", "Robot 2", False),
        ("anything", "\u2605", False),
        ("the \u2605 shines", "\u2605", True),
    ],
)
def test_names_in_captions(caption: str, name: str, there: bool) -> None:
    assert named_in(caption, [name]) == ([name] if there else [])


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Casey's boosted board lies there", {"Casey's boosted board"}),
        ("Casey rides Casey's boosted board", {"Casey", "Casey's boosted board"}),
        ("On Casey's boosted board stands CASEY", {"Casey", "Casey's boosted board"}),
        ("Casey is boosted", {"Casey"}),
    ],
)
def test_a_name_that_is_part_of_another_is_looked_for_beside_it(caption: str, named: set[str]) -> None:
    names = ["Casey", "Casey's boosted board"]
    assert set(named_in(caption, names)) == set(named_in(caption, names[::-1])) == named


def test_of_two_names_the_longer_is_looked_for_first_whatever_its_letters() -> None:
    assert named_in("Look, a friend of Casey.", ["Casey", "A friend of Casey"]) == ["A friend of Casey"]


def test_a_caption_is_graded_by_the_share_of_the_names_in_it() -> None:
    def answered(number: int, reply: str | None) -> Answer:
        query = Query(number, PERSONALISED, "pair", "0.png", ("a", "b"), "Caption?", {}, "Bo and Vex", "prompt",
                      identifiers=("Bo", "Vex"))  # fmt: skip
        return Answer(query, reply)

    replies = ["Bo meets Vex", "Bo alone", "two dogs", None]
    graded = {a.query.number: a.verdict for a in grade([answered(*one) for one in enumerate(replies)], "gpt", None)}
    assert [(graded[n].correct, graded[n].recall, graded[n].grader) for n in range(4)] == [
        (True, 1.0, "names"), (False, 0.5, "names"), (False, 0.0, "names"), (None, None, "names"),
    ]  # fmt: skip


def test_yollava_captions_with_their_baseline(ask: Call, call: Call, world: Path, no_keys: Path) -> None:
    def caption(body: dict, n: int) -> str:
        return "A PIG-CUP on a shelf." if "blue box" in prompt_of(body) else "A lamp."

    with ChatServer(caption) as server:
        result = ask("--dataset", "yollava", *served(server), "--with_baseline")
    assert_ran(result)
    found, total = results(no_keys)
    photos = [f"YoLLaVA/test/{name}/{n}.png" for name in ("lamp", "pig-cup") for n in (0, 1)]
    own, plain = found[::2], found[1::2]
    assert [r["photo_name"] for r in own] == photos == [r["photo_name"] for r in plain]
    assert [r["prompt"] for r in own] == [BOXED.format("LAMP")] * 2 + [BOXED.format("PIG-CUP")] * 2
    assert {r["prompt"] for r in plain} == {"Please caption this image."}
    assert all(len(images_of(body)) == 1 for body in server.bodies)
    assert [r["recall"] for r in own] == [0, 0, 1, 1] and [r["recall"] for r in plain] == [1, 1, 0, 0]
    assert [r["correct"] for r in own] == [False, False, True, True]
    assert total["overall"]["caption_recall"] == total["baseline"]["overall"]["caption_recall"] == 50
    assert [total["per_object"][name]["caption_recall"] for name in ("lamp", "pig-cup")] == [0, 100]
    assert total["open"]["total"] == total["with_options"]["total"] == 0 and total["ungraded"] == 0
    # the photos of a concept without views are counted and named, not silently dropped
    assert total["left_out"]["count"] == 2 and "new-thing/0.png" in total["left_out"]["questions"][0]
    assert "caption recall: 50.0 %" in result.stdout and "caption recall of the baseline: 50.0 %" in result.stdout
    [run] = [file.parent for file in no_keys.rglob("answers.jsonl")]
    again = call(main, "--regrade", run)  # asks neither LVLM nor judge
    assert_ran(again)
    regraded = [json.loads(file.read_text()) for file in no_keys.rglob("results_summary.json")]
    assert regraded[0] == regraded[1]


def test_of_a_pair_both_are_outlined_and_both_names_are_wanted(ask: Call, no_keys: Path) -> None:
    with ChatServer(lambda body, n: "Casey rides Casey\u2019s boosted board" if n == 0 else "Casey falls") as server:
        request = ("--caption_request", "What are <sks> doing?", "--concurrency", 1)
        result = ask("--dataset", "this-is-my", "--multi_concept", "True", *served(server), *request)
    assert_ran(result)
    found, total = results(no_keys)
    # "Casey falls" names Casey alone
    assert [(r["recall"], r["correct"]) for r in found] == [(1, True), (0.5, False)]
    assert [region["colour"] for region in found[0]["regions"]] == ["blue", "red"]
    assert found[0]["identifiers"] == ["Casey", "Casey's boosted board"]
    assert found[0]["prompt"].endswith("question: What are Casey and Casey's boosted board doing?")
    assert total["overall"]["caption_recall"] == 75 and total["overall"]["accuracy"] == 50
    assert list(total["per_object"]) == [PAIR]


def test_this_is_my_captions_the_positive_photos(ask: Call, no_keys: Path) -> None:
    with ChatServer(lambda body, n: "Alex's hat") as server:
        assert_ran(ask("--dataset", "this-is-my", *served(server)))
    found, total = results(no_keys)
    positive = "This-is-My-Img/Single-concept/test/Positive"
    assert [r["photo_name"] for r in found] == [f"{positive}/{name}/q0.png" for name in sorted(PEOPLE[:2])]
    assert total["per_object"]["Alexs hat-hat"]["caption_recall"] == 100
    assert total["per_object"]["Casey-man"]["caption_recall"] == 0


def test_myvlm_leaves_out_the_photos_of_the_views_before_it_counts_to_the_limit(ask: Call, no_keys: Path) -> None:
    with ChatServer(lambda body, n: "the red bull") as server:
        assert_ran(ask("--dataset", "myvlm", *served(server), "--limit", 3))
    found, total = results(no_keys)
    assert [Path(r["photo_name"]).name for r in found] == ["my_cat_1.jpg", "my_cat_2.jpg", "red_bull_1.jpg"]
    assert total["per_object"]["red_bull"]["caption_recall"] == 100


def test_a_local_lvlm_captions_and_an_interrupted_run_goes_on(
    ask: Call, call: Call, world: Path, no_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_ran(ask("--dataset", "yollava", "--vlm_model", world / "lvlm", "--max_new_tokens", 3, "--batch_size", 2))
    [answers] = no_keys.rglob("answers.jsonl")
    whole = answers.read_text()
    (answers.parent / "results_summary.json").unlink()
    answers.write_text("".join(whole.splitlines(keepends=True)[:1]))
    assert_ran(call(main, "--resume", answers.parent))

    def timeless(text: str) -> list[dict]:
        return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]

    assert timeless(answers.read_text()) == timeless(whole)
    other = call(main, "--resume", answers.parent, "--caption_request", "What is this?")
    assert_refused(other, "--resume", "another --caption_request")


def test_a_run_keeps_to_its_photos(ask: Call, call: Call, world: Path, no_keys: Path) -> None:
    """One that has gone is counted, or its caption stays; one that has come is not asked about."""
    shutil.copytree(world / "data/YoLLaVA", no_keys / "own/YoLLaVA")
    test = no_keys / "own/YoLLaVA/test"
    (test / "new-thing").rename(test / "a-thing")
    with ChatServer(lambda body, n: (500, "busy") if n == 2 else "lamp") as server:
        options = ("--data_folder", no_keys / "own", *served(server), "--retries", 0, "--concurrency", 1)
        assert_ran(ask("--dataset", "yollava", *options), 1)
        [answers] = no_keys.rglob("answers.jsonl")
        before = {line["photo_name"]: line for line in map(json.loads, answers.read_text().splitlines())}
        [failed] = [name for name, line in before.items() if line["reply"] is None]
        kept = next(name for name, line in before.items() if line["reply"])
        for name in (failed, kept):
            (no_keys / "own" / name).unlink()
        (test / "a-thing/0.png").rename(test / "lamp/00.png")
        result = call(main, "--resume", answers.parent)
        assert_ran(result)
        assert "1 photo was not there when the run began" in result.stderr and "changed" not in result.stderr
        assert len(server.bodies) == len(before)  # nothing is asked again
    after = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["photo_name"] for line in after] == [name for name in before if name != failed]
    summary = json.loads((answers.parent / "results_summary.json").read_text())
    assert sorted(summary["missing_photos"]["photos"]) == sorted([failed, "YoLLaVA/test/a-thing/0.png"])


def test_of_two_concepts_in_a_photo_both_need_views(ask: Call, world: Path, no_keys: Path) -> None:
    views = views_folder(world / "features", "this-is-my", True, False)
    for concept in PEOPLE[:2]:  # all but the board's
        shutil.copytree(views / concept, no_keys / "f/this-is-my/multi_concept/extracted_features" / concept)
    options = ("--dataset", "this-is-my", "--multi_concept", "True", "--features_folder", no_keys / "f")
    assert_refused(ask(*options), "only concepts that have views", "extraction.py")


def test_photos_of_the_views_own_split_are_told(
    ask: Call, call: Call, no_keys: Path, world: Path, models: Path
) -> None:
    common = ("--data_folder", world / "data", "--features_folder", no_keys / "f", "--models", models)
    few = ("--num_workers", 0, "--n_training_views", 1, "--dataset", "yollava")
    assert_ran(call(extraction.main, *common, *few, "--split", "test"))
    with ChatServer(lambda body, n: "lamp") as server:
        result = ask("--dataset", "yollava", "--features_folder", no_keys / "f", *served(server))
    assert_ran(result)
    assert "the views are of --split test, too" in result.stderr


def test_a_request_that_tells_the_names_is_warned_of_or_left_ungraded(ask: Call, no_keys: Path) -> None:
    with ChatServer(lambda body, n: "On a table.") as server:
        options = ("--dataset", "yollava", "--limit", 1, *served(server), "--caption_request")
        assert "tells the names" in ask(*options, "Describe <sks>.").stderr
        assert "tells the names" not in ask(*options, "Tell what he asks.").stderr
        result = ask(*options, "What is <sks> standing on?", "--grader", "none", "--save_folder", no_keys / "own")
    assert_ran(result)
    assert "recall" not in result.stdout and "not graded: 1;" in result.stdout and "names" not in result.stderr
    assert "Result: not graded (--grader none)" in next((no_keys / "own").rglob("results_vqa.txt")).read_text()


@pytest.mark.parametrize("dataset", ["yollava", "myvlm"])
def test_photos_of_concepts_with_views_alone_are_captioned(ask: Call, no_keys: Path, dataset: str) -> None:
    root = no_keys / "own" / {"yollava": "YoLLaVA/test", "myvlm": "myvlm/data"}[dataset]
    write_photos(root / "new-thing", ["0.png", "1.png"], seed=2)
    result = ask("--dataset", dataset, "--data_folder", no_keys / "own", "--features_folder", no_keys / "none")
    assert_refused(result, "no views are stored", "extraction.py")
    views = no_keys / "none" / dataset / "extracted_features"
    save_view(view_file(views / "gsam", "new-thing", "0", 0), VIEW)
    result = ask("--dataset", dataset, "--data_folder", no_keys / "own", "--features_folder", no_keys / "none")
    assert_refused(result, str(views), "but in", "give --grounding_sam True")
    save_view(view_file(views, "old-thing", "0", 0), VIEW)
    result = ask("--dataset", dataset, "--data_folder", no_keys / "own", "--features_folder", no_keys / "none")
    assert_refused(result, "no photo in", "extraction.py")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--json_path", "q.json"), ["--json_path", "captioning"]),
        (("--caption_request", " "), ["--caption_request", "empty"]),
        (("--caption_request", "What\udcff?"), ["--caption_request", "UTF-8"]),
        (("--task", "vqa", "--caption_request", "What?"), ["--caption_request"]),
        (("--dataset", "myvlm", "--task", "vqa"), ["myvlm has no published questions", "--json_path"]),
        (("--split", "validation"), ["--split validation"]),
    ],
)
def test_mistakes_are_one_sentence(ask: Call, no_keys: Path, options: tuple, words: list[str]) -> None:
    assert_refused(ask("--dataset", "yollava", *options), *words)
    assert not list(no_keys.rglob("config.json"))
