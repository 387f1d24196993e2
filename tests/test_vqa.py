"""vqa.py from question files to graded results, with a tiny InternVL and with a server behind real HTTP."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    ROOT,
    Shared,
    assert_ran,
    assert_refused,
    run_folder,
    script_environment,
    write_multi,
    write_photos,
    write_yollava,
)
from PIL import Image
from vqa_fixtures import SECRET, ChatServer, build_lvlm_folder, images_of, prompt_of, write_json

from pekit import asking
from pekit.answers import BASELINE, PERSONALISED, Answer, Query, Verdict
from pekit.cli import detection, extraction
from pekit.cli.vqa import main
from pekit.parallel import PeerLostError
from pekit.planning import choose_regions
from pekit.records import Detection, Photo, UserError, View
from pekit.views import save_view, view_file, views_folder
from pekit.vqa_results import summarise, summary_text
from pekit.vqa_runs import describe_lvlm, held

Call = Callable[..., subprocess.CompletedProcess[str]]
FEW = ("--num_workers", 0, "--n_training_views", 1)
PEOPLE = ("Casey-man", "Alexs hat-hat", "Caseys boosted board-skateboard")
PAIR = "Casey_and_Caseys boosted board"
YOLLAVA_QUESTIONS = {
    "pig-cup": {
        "./yollava-data/test/pig-cup/0.png": {
            "question": "What colour is <sks>?",
            "options": {"A": "red", "B": "blue"},
            "correct_answer": "B",
        },
        "./yollava-data/test/pig-cup/1.png": {
            "question": "Where is <sks>?",
            "options": {"A": "left", "B": "right"},
            "correct_answer": "A",
        },
    },
    "lamp": {
        "./yollava-data/test/lamp/0.png": {
            "question": "Is <sks> on?",
            "options": {"A": "yes", "B": "no"},
            "correct_answer": "B",
        },
        "./yollava-data/test/lamp/lost.png": {
            "question": "Is <sks> off?",
            "options": {"A": "yes", "B": "no"},
            "correct_answer": "B",
        },
    },
}
MULTI_QUESTIONS = {
    "Casey_Caseys boosted board": {
        f"./test/{PAIR}/0.png": {"question": "What is Casey doing?", "correct_answer": "Riding <sks2>"},
        f"./test/{PAIR}/1.png": {"question": "Where is he?", "answer": "Outside", "gpt_answer": "In a street"},
        f"./test/{PAIR}/lost.png": {"question": "Who?", "answer": "Casey"},
    },
    "Alexs hat": {
        f"./test/{PAIR}/0.png": {
            "question": "What colour is Alex\u2019s hat?",
            "options": {"A": "red", "B": "blue"},
            "correct_answer": "A",
        }
    },
}


@pytest.fixture(scope="session")
def world(shared: Shared, models: Path) -> Path:
    """data/ with question files, features/ with a view of each concept, lvlm/; all models untrained."""

    def build(folder: Path) -> None:
        data = write_yollava(folder / "data", ("pig-cup", "lamp"), train=1, test=2)
        write_multi(data, PEOPLE, [PAIR], train=1, test=2)
        for path in data.rglob("test/*/*.png"):
            Image.open(path).resize((640, 480)).save(path)
        write_json(data / "YoLLaVA/yollava-visual-qa.json", YOLLAVA_QUESTIONS)
        write_json(data / "This-is-My-Img/Multi-concept/VQA/questions.json", MULTI_QUESTIONS)
        text = {"pig-cup": {"0": {"question": "Is sks red?", "option": {"A": "yes", "B": "no"}, "correct_answer": "A"}}}
        write_json(data / "YoLLaVA/text-qa.json", text)
        write_json(data / "YoLLaVA/descriptions.json", {"pig-cup": "A red cup like a pig."})
        build_lvlm_folder(folder / "lvlm")
        rng = np.random.default_rng(0)
        width = json.loads((models / "features/config.json").read_text())["hidden_size"]
        for dataset, multi, concepts in (("yollava", False, ("pig-cup", "lamp")), ("this-is-my", True, PEOPLE)):
            for concept in concepts:
                patches = rng.normal(size=(2, width)).astype(np.float32)
                views = views_folder(folder / "features", dataset, multi, False)
                save_view(view_file(views, concept, "0", 0), View(concept, "0.png", 0, patches, patches.mean(0)))

    return shared("vqa", build)


@pytest.fixture
def ask(world: Path, models: Path, call: Call, no_keys: Path) -> Call:
    """Run vqa.py in this process, without keys, results in the test's own folder."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        return call(main, *places(world, models, no_keys), *options)

    return run


def places(world: Path, models: Path, tmp_path: Path) -> tuple[object, ...]:
    data = ("--data_folder", world / "data", "--features_folder", world / "features")
    return (*data, "--models", models, *FEW, "--save_folder", tmp_path / "results")


def served(server: ChatServer) -> tuple[object, ...]:
    return ("--vlm_model", "openai:test", "--vlm_base_url", server.url, "--retry_wait", 0.01, "--retries", 2)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Detection]]:
    """In place of the recognition: regions given by the test, by photo name; without any the photo holds none."""
    regions: dict[str, list[Detection]] = {}

    def locate(items: Any, *rest: Any) -> dict:
        return {item.question.photo: regions.get(item.question.photo.name, []) for item in items}

    monkeypatch.setattr(asking, "locate_concepts", locate)
    return regions


def only_run(folder: Path) -> Path:
    """The folder of the only run below a results folder."""
    (summary,) = folder.rglob("results_summary.json")
    return summary.parent


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def summary(run: Path) -> dict:
    return json.loads((run / "results_summary.json").read_text())


def config_with_key(folder: Path, server: ChatServer) -> Path:
    text = (
        f'[openai]\nOPENAI_API_KEY = "{SECRET}"\nOPENAI_API_BASE = {server.url}\nOPENAI_CHAT_MODEL = judge\nTEMP = 0\n'
    )
    path = folder / "config.ini"
    path.write_text(text)
    return path


def assert_no_key(folder: Path, result: subprocess.CompletedProcess[str]) -> None:
    """The key is in nothing that was printed or written, but for the settings file itself."""
    assert SECRET not in result.stdout + result.stderr
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "config.ini"]
    assert files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


# --- the whole way, recognition included ---------------------------------------------------------------------------


def test_single_concept_with_a_local_internvl(ask: Call, call: Call, world: Path, models: Path, tmp_path: Path) -> None:
    options = ("--dataset", "yollava", "--vlm_model", world / "lvlm", "--max_new_tokens", 4, "--batch_size", 3)
    result = ask(*options, "--with_baseline", "--overlays")
    assert_ran(result)
    run = only_run(tmp_path / "results")
    assert re.fullmatch(r"vqa/lvlm/\d{8}-\d{6}", run.relative_to(tmp_path / "results").as_posix())
    found = records(run)
    assert [(r["number"], r["variant"]) for r in found] == [
        (n, variant) for n in (1, 2, 3) for variant in ("personalised", "baseline")
    ]
    first, plain = found[0], found[1]
    assert first["prompt"] == (
        'In this image, the entity enclosed in a blue box is called "PIG-CUP". Never mention the boxes and their '
        "colors. Answer the following question: What colour is pig-cup? A.red or B.blue"
    )
    assert plain["prompt"] == "What colour is pig-cup? A.red or B.blue" and plain["regions"] == []
    assert all(isinstance(record["reply"], str) and record["seconds"] > 0 for record in found)

    # the region is the most similar one: detection.py, another way through the code, knows its similarity
    places_ = ("--data_folder", world / "data", "--features_folder", world / "features", "--models", models, *FEW)
    assert_ran(call(detection.main, "--dataset", "yollava", *places_, "--save_folder", tmp_path / "detected"))
    predictions = (run_folder(tmp_path / "detected") / "predictions.jsonl").read_text().splitlines()
    best = {p["photo"]: p["similarities"] for p in map(json.loads, predictions)}
    for record in found[::2]:
        [region] = record["regions"]
        photo = record["photo_name"].replace("./yollava-data", "YoLLaVA")
        assert region["score"] == pytest.approx(best[photo][record["concepts"][0]], abs=1e-5)
        assert (region["concept"], region["colour"]) == (record["concepts"][0], "blue")

    # the overlay is the photo at its own size with that region outlined, and nothing else
    photo = np.asarray(Image.open(world / "data/YoLLaVA/test/pig-cup/0.png").convert("RGB"))
    overlay = np.asarray(Image.open(run / "overlays/0001_0.png"))
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = (
        int(c * side) for c, side in zip(first["regions"][0]["box_xyxyn"], (width, height) * 2, strict=True)
    )
    changed = (overlay != photo).any(-1)
    assert changed.any() and (overlay[changed] == (0, 0, 255)).all()
    ys, xs = np.nonzero((overlay == (0, 0, 255)).all(-1))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (x0, y0, min(x1, width - 1), min(y1, height - 1))
    assert len(list((run / "overlays").iterdir())) == 3

    total = summary(run)
    assert total["missing_photos"] == {"count": 1, "photos": ["./yollava-data/test/lamp/lost.png"]}
    assert total["overall"]["total"] == total["baseline"]["overall"]["total"] == 3
    config = json.loads((run / "config.json").read_text())
    assert config["lvlm"]["fingerprint"] and config["views"]["views"] == ["lamp/0_0.pt", "pig-cup/0_0.pt"]
    assert "lost.png" in result.stdout


@pytest.mark.parametrize("resumed", [False, True])
def test_several_processes_share_the_search_and_one_asks(
    ask: Call, world: Path, models: Path, tmp_path: Path, resumed: bool
) -> None:
    options = ("--dataset", "yollava", "--task", "vqa_names_ambiguity_full")
    with ChatServer(lambda body, n: "A. yes") as server:
        assert_ran(ask(*options, *served(server)))
        one, first = only_run(tmp_path / "results"), list(server.bodies)
        kept = records(one)
        assert len(first) == len(kept) == 3
        run = (*options, *places(world, models, tmp_path), *served(server), "--save_folder", tmp_path / "together")
        if resumed:  # an interrupted run of which the first answer is left
            (one / "answers.jsonl").write_text(json.dumps(kept[0]) + "\n")
            run = (*run, "--resume", one)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
        result = subprocess.run(
            [*command, str(ROOT / "vqa.py"), *map(str, run)],
            capture_output=True,
            text=True,
            timeout=300,
            env=script_environment(),
        )
    assert_ran(result)
    assert result.stdout.count("results in") == 1
    together = one if resumed else only_run(tmp_path / "together")
    again = server.bodies[3:]
    key = lambda body: json.dumps(body, sort_keys=True)  # noqa: E731
    left = [body for body in first if not resumed or kept[0]["prompt"] != prompt_of(body)]
    assert sorted(map(key, again)) == sorted(map(key, left))
    assert len(left) == (2 if resumed else 3)
    for a, b in zip(kept, records(together), strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_multi_concept_through_a_server(ask: Call, world: Path, tmp_path: Path) -> None:
    replies = {"doing": "He rides", "Where": "In a boat", "colour is": "A. red"}

    def answer(body: dict, n: int) -> str:
        if body["model"] == "judge":
            return "Yes" if "Prediction: He rides" in prompt_of(body) else "No."
        return next(reply for word, reply in replies.items() if word in prompt_of(body))

    with ChatServer(answer) as server:
        config = config_with_key(tmp_path, server)
        result = ask("--dataset", "this-is-my", "--multi_concept", "True", *served(server), "--config", config)
    assert_ran(result)
    run = only_run(tmp_path / "results/vqa/openai-test")
    found = records(run)
    assert [r["correct"] for r in found] == [True, False, True]
    assert [r["grader"] for r in found] == ["gpt", "gpt", "letter"]
    assert found[0]["prompt"] == (
        'In this image, the entity enclosed in a blue box is called "CASEY" and the entity enclosed in a red box is '
        'called "CASEY\'S BOOSTED BOARD". Never mention the boxes and their colors. Answer the following question: '
        "What is Casey doing?"
    )
    assert (found[0]["answer"], found[1]["gpt_answer"]) == ("Riding Casey's boosted board", "In a street")
    asked = {prompt_of(body): body for body in server.bodies if body["model"] == "test"}
    assert set(asked) == {record["prompt"] for record in found}
    for record in found:  # what was sent is the photo with the boxes of the record
        sent = images_of(asked[record["prompt"]])[0].partition(",")[2]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sent))))
        name = record["photo_name"].removeprefix("./")
        photo = np.asarray(Image.open(world / "data/This-is-My-Img/Multi-concept" / name).convert("RGB"))
        colours = {tuple(int(value) for value in pixel) for pixel in image[(image != photo).any(-1)]}
        assert colours and colours <= {(0, 0, 255), (255, 0, 0)}
    total = summary(run)
    assert total["per_object"]["Casey_Caseys boosted board"]["correct"] == 1
    assert total["per_object"]["Alexs hat"] | {"interval_95": 0} == {
        "correct": 1, "total": 1, "accuracy": 100.0, "interval_95": 0
    }  # fmt: skip
    assert total["missing_photos"]["photos"] == [f"./test/{PAIR}/lost.png"]
    assert_no_key(tmp_path, result)


# --- text only, baselines, names -----------------------------------------------------------------------------------


def test_text_only(ask: Call, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A" if "pig" in prompt_of(body).split("\n")[0] else "B") as server:
        result = ask("--dataset", "yollava", "--task", "tqa", *served(server), "--with_baseline")
        assert_ran(result)
        assert [images_of(body) for body in server.bodies] == [[], []]
    aided, alone = records(only_run(tmp_path / "results/tqa"))
    assert aided["prompt"] == (
        'This is a description of "pig-cup": A red cup like a pig.\n'
        "Answer the following question: Is pig-cup red? A.yes or B.no"
    )
    assert alone["prompt"] == "Is pig-cup red? A.yes or B.no"
    assert aided["correct"] is True and alone["variant"] == "baseline"


def test_of_a_pair_both_descriptions_are_told(ask: Call, tmp_path: Path) -> None:
    file = write_json(tmp_path / "pair.json", {"Casey_Alexs hat": {"0": {"question": "Who?", "answer": "Casey"}}})
    told = write_json(tmp_path / "told.json", {"Alexs hat": "A straw hat.", "Casey": "A tall man."})
    run = ("--dataset", "this-is-my", "--multi_concept", "--task", "tqa", "--json_path", file, "--descriptions", told)
    with ChatServer(lambda body, n: "Casey") as server:
        assert_ran(ask(*run, *served(server), "--grader", "exact"))
        assert [prompt_of(body) for body in server.bodies] == [
            'This is a description of "Casey and Alex\'s hat": A tall man. A straw hat.\n'
            "Answer the following question: Who?"
        ]


def test_text_only_questions_are_told_apart_without_a_photo(ask: Call, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: (503, "busy")) as server:
        result = ask("--dataset", "yollava", "--task", "tqa", *served(server), "--with_baseline")
    assert_ran(result, 1)
    run = only_run(tmp_path / "results/tqa")
    errors = summary(run)["errors"]
    assert [error.partition(": ")[0] for error in errors] == [
        "question 1, pig-cup",
        "question 1 (baseline), pig-cup",
    ]
    text = (run / "results_vqa.txt").read_text()
    assert text.startswith("[1]\nConcepts: pig-cup\nQuestion: ") and "Photo:" not in text
    assert "no reply: question 1 (baseline), pig-cup: InternalServerError" in text


def test_unpersonalised_tasks_need_no_views_and_draw_nothing(ask: Call, world: Path, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "B") as server:
        result = ask(
            *("--dataset", "yollava", "--task", "base_vlm_vqa", "--features_folder", tmp_path / "none"),
            *(*served(server), "--concurrency", 1),
        )
        assert_ran(result)
        sent = images_of(server.bodies[0])[0].partition(",")[2]
    photo = Image.open(world / "data/YoLLaVA/test/pig-cup/0.png").convert("RGB")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(sent)))), np.asarray(photo))
    found = records(only_run(tmp_path / "results/base_vlm_vqa/openai-test"))
    assert [record["prompt"] for record in found] == [
        "What colour is pig-cup? A.red or B.blue",
        "Where is pig-cup? A.left or B.right",
        "Is lamp on? A.yes or B.no",
    ]
    assert [record["correct"] for record in found] == [True, False, True]
    assert [record["not_found"] for record in found] == [[]] * 3  # nothing was looked for


def test_unpersonalised_tasks_name_concepts_that_have_no_views(ask: Call, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    questions = {"my_mug": {"test/my_mug/0.png": {"question": "Is <sks> red?", "answer": "yes"}}}
    write_photos(tmp_path / "data/YoLLaVA/test/my_mug", ["0.png"])
    write_photos(tmp_path / "data/YoLLaVA/train/my_mug", ["0.png"])
    file = write_json(tmp_path / "data/YoLLaVA/own.json", questions)
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--json_path", file, "--grader", "exact")
    with ChatServer(lambda body, n: "yes") as server:
        assert_ran(ask(*run, "--task", "base_vlm_vqa", *served(server)))  # others have views, this one has none
        assert [prompt_of(body) for body in server.bodies] == ["Is my mug red?"]
        assert_refused(ask(*run, *served(server)), "no views of this concept")


HERE = (0.1, 0.1, 0.5, 0.9)
THERE = (0.5, 0.2, 0.9, 0.8)
FAR = (0.0, 0.0, 0.2, 0.2)


@pytest.mark.parametrize(
    ("task", "clauses", "question"),
    [
        ("vqa", ['a blue box is called "ALEX\'S HAT"'], "What colour is Alex\u2019s hat? A.red or B.blue"),
        ("vqa_names", ['a blue box is called "VEX"'], "What colour is Vex? A.red or B.blue"),
        (
            "vqa_names_ambiguity",
            ['a blue box is called "VEX"', 'a red box is called "NOVA"'],
            "What colour is Vex? A.red or B.blue",
        ),
        (
            "vqa_names_ambiguity_full",
            ['a blue box is called "VEX"', 'a red box is called "NOVA"', 'a green box is called "CASEY"'],
            "What colour is Vex? A.red or B.blue",
        ),
        ("base_vlm_vqa", [], "What colour is Alex\u2019s hat? A.red or B.blue"),
        ("base_vlm_vqa_names", [], "What colour is Vex? A.red or B.blue"),
    ],
)
def test_names_of_each_task(
    ask: Call, nowhere: dict, tmp_path: Path, task: str, clauses: list[str], question: str
) -> None:
    nowhere["0.png"] = [
        Detection("Caseys boosted board-skateboard", 0.9, THERE),
        Detection("Alexs hat-hat", 0.8, HERE),
        Detection("Casey-man", 0.7, FAR),
    ]
    with ChatServer(lambda body, n: "A") as server:
        options = ("--dataset", "this-is-my", "--multi_concept", "True", "--task", task, "--grader", "none")
        assert_ran(ask(*options, *served(server)))
    prompt = records(only_run(tmp_path / "results" / task))[2]["prompt"]
    if clauses:
        named = " and ".join(f"the entity enclosed in {clause}" for clause in clauses)
        rest = "Never mention the boxes and their colors. Answer the following question:"
        question = f"In this image, {named}. {rest} {question}"
    assert prompt == question


def test_other_concepts_do_not_share_an_outlined_region() -> None:
    located = [Detection("b", 0.9, HERE), Detection("a", 0.8, HERE), Detection("c", 0.7, THERE)]
    chosen, not_found = choose_regions(("a", "z"), located, others=8)
    assert [d.concept for d in chosen] == ["a", "c"] and not_found == ("z",)
    many = [Detection(str(n), 1 - n / 100, (n / 100, 0.0, 1.0, 1.0)) for n in range(20)]
    assert [d.concept for d in choose_regions(("5",), many, 8)[0]] == ["5", "0", "1", "2", "3", "4", "6", "7"]
    assert [d.concept for d in choose_regions(("5",), many, 1)[0]] == ["5", "0"]
    assert [d.concept for d in choose_regions(("5", "3"), many, 0)[0]] == ["5", "3"]
    asked = tuple(map(str, range(10, 20)))  # more than there are colours
    assert [d.concept for d in choose_regions(asked, many, 1)[0]] == list(asked[:8])


def test_other_concepts_are_outlined_best_first(ask: Call, tmp_path: Path) -> None:
    options = ("--dataset", "this-is-my", "--multi_concept", "True", "--task", "vqa_names_ambiguity_full")
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask(*options, *served(server), "--grader", "none"))
    asked, *others = records(only_run(tmp_path / "results"))[2]["regions"]
    assert asked["concept"] == "Alexs hat-hat"
    assert {region["concept"] for region in others} == {"Casey-man", "Caseys boosted board-skateboard"}
    assert others[0]["score"] > others[1]["score"]


def test_threshold_leaves_concepts_out_and_says_so(ask: Call, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "B") as server:
        result = ask("--dataset", "yollava", *served(server), "--detect_thresh", 1, "--limit", 1)
    assert_ran(result)
    run = only_run(tmp_path / "results")
    [record] = records(run)
    assert record["regions"] == [] and record["not_found"] == ["pig-cup"]
    assert record["prompt"] == "What colour is pig-cup? A.red or B.blue"
    assert summary(run)["regions_not_found"] == 1
    assert "Not found: pig-cup" in (run / "results_vqa.txt").read_text()


def test_a_region_must_exceed_the_threshold(ask: Call, tmp_path: Path) -> None:
    run = ("--dataset", "yollava", "--limit", 1)
    with ChatServer(lambda body, n: "B") as server:

        def regions(folder: str, *options: object) -> list[dict]:
            assert_ran(ask(*run, *served(server), *options, "--save_folder", tmp_path / folder))
            return records(only_run(tmp_path / folder))[0]["regions"]

        [best] = regions("without")
        assert regions("at", "--detect_thresh", repr(best["score"])) == []
        assert regions("below", "--detect_thresh", repr(float(np.nextafter(best["score"], -1)))) == [best]


def test_a_turned_photo_is_shown_turned_and_outlined_where_the_concept_is(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    path = tmp_path / "data/YoLLaVA/test/pig-cup/0.png"
    photo = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown right is a quarter turn clockwise
    photo.save(path, exif=exif)
    nowhere["0.png"] = [Detection("pig-cup", 0.9, HERE)]
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--limit", 1)
    with ChatServer(lambda body, n: "B") as server:
        for turned in ("True", "False"):
            assert_ran(ask(*run, *served(server), "--exif", turned, "--save_folder", tmp_path / turned))
        sent = [images_of(body)[0].partition(",")[2] for body in server.bodies]
    as_stored = np.asarray(photo)
    for content, expected in zip(sent, (np.rot90(as_stored, -1), as_stored), strict=True):
        height, width = expected.shape[:2]
        x0, y0, x1, y1 = (round(share * side) for share, side in zip(HERE, (width, height) * 2, strict=True))
        outlined = expected.copy()
        outlined[y0 : y1 + 1, x0 : x1 + 1] = (0, 0, 255)
        inner = slice(y0 + 10, y1 - 9), slice(x0 + 10, x1 - 9)
        outlined[inner] = expected[inner]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), outlined)


# --- results -------------------------------------------------------------------------------------------------------


def test_result_files(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    replies = {"colour": "Actually, it is B", "Where": "left one: a.", "lamp": "no"}

    def answer(body: dict, n: int) -> str:
        return next(reply for word, reply in replies.items() if word in prompt_of(body))

    with ChatServer(answer) as server:
        result = ask("--dataset", "yollava", *served(server))
    assert_ran(result)
    run = only_run(tmp_path / "results")
    text = (run / "results_vqa.txt").read_text()
    assert text.startswith(
        "[1]\nPhoto: ./yollava-data/test/pig-cup/0.png\nConcepts: pig-cup\nNot found: pig-cup\nQuestion: What colour "
        "is pig-cup? A.red or B.blue\nTruth: B\nPrediction: Actually, it is B\nResult: wrong\n\n[2]\n"
    )
    assert "Prediction: left one: a.\nResult: correct\n" in text
    assert text.index("[3]") < text.index("\nSummary\n") < text.index("lost.png")
    total = summary(run)
    # released: A, A, none; strict: B, A, B by the option's text
    assert total["overall"].pop("interval_95") == pytest.approx([6.149, 79.234], abs=1e-3)
    assert total["overall"] == {"correct": 1, "total": 3, "accuracy": pytest.approx(100 / 3)}
    assert total["strict"] == {"correct": 3, "total": 3, "accuracy": 100.0, "differ": 2}
    assert total["per_object"]["pig-cup"]["correct"] == 1 and total["per_object"]["lamp"]["correct"] == 0
    assert (total["per_object"]["lamp"]["total"], total["per_object"]["lamp"]["accuracy"]) == (1, 0.0)
    assert (total["ungraded"], total["unanswered"], total["open"]["total"]) == (0, 0, 0)


def test_unanswered_and_ungraded_are_counted_apart(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> Any:
        if body["model"] == "judge":
            return "Not sure"
        return (503, "busy") if "doing" in prompt_of(body) else "A"

    with ChatServer(answer) as server:
        options = ("--dataset", "this-is-my", "--multi_concept", "True", "--config", config_with_key(tmp_path, server))
        result = ask(*options, *served(server))
    assert_ran(result, 1)
    run = only_run(tmp_path / "results")
    total = summary(run)
    assert (total["unanswered"], total["ungraded"], total["overall"]["correct"], total["overall"]["total"]) == (
        1,
        1,
        1,
        1,
    )
    [error] = total["errors"]
    assert error.startswith(f"question 1, Casey_Caseys boosted board, ./test/{PAIR}/0.png: InternalServerError")
    [error] = total["grading_errors"]
    assert error.startswith("question") and error.endswith(": the reply was 'Not sure'")
    assert f"no verdict: {error}\n" in result.stdout
    assert f"go on with --resume {run}" in result.stderr
    assert "not graded (the reply was 'Not sure')" in (run / "results_vqa.txt").read_text()
    assert_no_key(tmp_path, result)


def test_unanswered_questions_are_told_where_nobody_grades(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    run = ("--dataset", "this-is-my", "--multi_concept", "--limit", 2, "--grader", "none")
    with ChatServer(lambda body, n: (503, "busy") if "Where" in prompt_of(body) else "outside") as server:
        result = ask(*run, *served(server))
    assert_ran(result, 1)
    assert f"go on with --resume {only_run(tmp_path / 'results')}" in result.stderr
    errors = [line for line in result.stderr.splitlines() if "ERROR" in line]
    assert len(errors) == 1 and f"question 2, Casey_Caseys boosted board, ./test/{PAIR}/1.png: " in errors[0]


def test_the_config_tells_which_parameters_the_server_did_not_take(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> Any:
        refused = {"code": "unsupported_value", "param": "temperature"}
        return (400, "only the default", refused) if "temperature" in body else "A"

    with ChatServer(answer) as server:
        assert_ran(ask("--dataset", "yollava", *served(server), "--limit", 1))
    config = json.loads((only_run(tmp_path / "results") / "config.json").read_text())
    assert config["lvlm"]["parameters_not_taken"] == ["temperature"]


def answer_about(subject: str, variant: str, correct: bool | None, missed: tuple[str, ...] = ()) -> Answer:
    query = Query(1, variant, subject, "0.png", (subject,), "What?", {}, "key", "prompt", not_found=missed)
    return Answer(query, "reply", verdict=Verdict(correct, "gpt", reason="Not sure"))


def test_a_summary_counted_by_hand() -> None:
    own = [("a", True), ("a", True), ("b", False)]
    baseline = [("a", False), ("a", None), ("b", True)]
    answers = [answer_about(subject, PERSONALISED, correct, ("x", "y")) for subject, correct in own]
    answers += [answer_about(subject, BASELINE, correct) for subject, correct in baseline]
    total = summarise(answers, [])
    assert [line.split() for line in summary_text(total).splitlines()[:4]] == [
        ["correct", "total", "accuracy", "baseline"],
        ["a", "2", "2", "100.0", "%", "0.0", "%"],
        ["b", "0", "1", "0.0", "%", "100.0", "%"],
        ["all", "questions", "2", "3", "66.7", "%", "50.0", "%"],
    ]
    assert total["grading_errors"] == ["question 1 (baseline), a, 0.png: Not sure"]
    assert (total["ungraded"], total["baseline"]["ungraded"]) == (0, 1)
    assert (total["regions_not_found"], total["baseline"]["regions_not_found"]) == (6, 0)


def test_unreadable_photo_is_named_and_the_run_goes_on(ask: Call, world: Path, tmp_path: Path) -> None:
    photos = tmp_path / "mine"
    photos.mkdir()
    Image.new("RGB", (40, 30)).save(photos / "good.png")
    (photos / "bad.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    option = {"options": {"A": "x", "B": "y"}, "answer": "A"}
    content = {"pig-cup": {"bad.png": {"question": "1?", **option}, "good.png": {"question": "2?", **option}}}
    file = write_json(photos / "questions.json", content)
    with ChatServer(lambda body, n: "A") as server:
        result = ask("--dataset", "yollava", "--json_path", file, *served(server))
        assert_ran(result, 1)
        assert len(server.bodies) == 1
        strict = ask("--dataset", "yollava", "--task", "base_vlm_vqa", "--json_path", file, *served(server), "--strict")
    assert "Git LFS" in result.stdout and "bad.png" in result.stdout
    assert summary(only_run(tmp_path / "results/vqa"))["unanswered"] == 1
    assert_refused(strict, "bad.png", "--strict")


def test_a_dry_run_names_an_unreadable_photo_and_goes_on(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    photos = tmp_path / "mine"
    photos.mkdir()
    (photos / "bad.png").write_bytes(b"no photo")
    Image.new("RGB", (40, 30)).save(photos / "good.png")
    content = {"pig-cup": {name: {"question": f"{name}?", "answer": "A"} for name in ("bad.png", "good.png")}}
    file = write_json(photos / "questions.json", content)
    result = ask("--dataset", "yollava", "--json_path", file, "--dry_run")
    assert_ran(result, 1)
    assert "[1] vqa: bad.png\nbad.png?\n" in result.stdout and "good.png?\n" in result.stdout
    assert "ERROR" in result.stderr and "bad.png" in result.stderr
    assert [path.name for path in (tmp_path / "results").rglob("*.png")] == ["0002_good.png"]
    assert_refused(ask("--dataset", "yollava", "--json_path", file, "--dry_run", "--strict"), "bad.png", "--strict")


# --- stopping, going on, grading again -----------------------------------------------------------------------------


def interrupted(command: list[object], ready: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """Run vqa.py and press Ctrl-C when it is ready."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "vqa.py"), *map(str, command)], env=script_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=15)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_ctrl_c_and_resume_give_the_same_files(world: Path, models: Path, ask: Call, tmp_path: Path) -> None:
    """base_vlm spares the recognition, which resuming does not touch."""
    content = {
        "pig-cup": {
            f"./test/pig-cup/{n % 2}.png": [
                {"question": f"Number {k}?", "options": {"A": "x", "B": "y"}, "answer": "A"} for k in range(n, 20, 2)
            ]
            for n in range(2)
        }
    }
    file = write_json(world / "data/YoLLaVA/many.json", content)
    options = ("--dataset", "yollava", "--task", "base_vlm_vqa", "--json_path", file, "--concurrency", 1)

    def answer(body: dict, n: int) -> str:
        return "A" if int(re.findall(r"\d+", prompt_of(body))[0]) % 3 else "B"

    with ChatServer(answer, delay=0.05) as server:
        whole = ask(*options, *served(server), "--save_folder", tmp_path / "whole")
        assert_ran(whole)
        assert len(server.bodies) == 20
        command = [*places(world, models, tmp_path), *options, *served(server), "--save_folder", tmp_path / "broken"]
        result = interrupted(command, lambda: len(server.bodies) >= 28)
        assert_ran(result, 130)
        assert not result.stdout
        (answers,) = (tmp_path / "broken").rglob("answers.jsonl")
        run = answers.parent
        assert f"--resume {run}" in result.stderr and "stopped" in result.stderr
        done = len(answers.read_text().splitlines())
        assert 5 <= done < 20
        with answers.open("a") as stream:
            stream.write('{"number": 19, "vari')  # a line that was cut short
        before = len(server.bodies)
        assert_ran(ask("--resume", run))
        assert len(server.bodies) - before == 20 - done
    for name in ("results_vqa.txt", "results_summary.json"):
        assert (run / name).read_bytes() == (only_run(tmp_path / "whole") / name).read_bytes()

    def timeless(run: Path) -> list[dict]:
        return [{name: value for name, value in record.items() if name != "seconds"} for record in records(run)]

    assert timeless(run) == timeless(only_run(tmp_path / "whole"))


@pytest.mark.parametrize("replaced", [False, True])
def test_regions_that_were_found_are_not_looked_for_again(
    ask: Call, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--save_folder")
    locate, searched = asking.locate_concepts, []

    def watched(items: Any, *rest: Any) -> dict:
        *rest, keep = rest

        def noted(photo: Photo, concepts: set[str], regions: list[Detection]) -> None:
            if stop_after == len(searched):
                raise KeyboardInterrupt
            searched.append(photo.name)
            keep(photo, concepts, regions)

        return locate(items, *rest, noted)

    monkeypatch.setattr(asking, "locate_concepts", watched)
    with ChatServer(lambda body, n: "A") as server:
        stop_after = 2
        assert_ran(ask(*run, tmp_path / "results", *served(server)), 130)
        (stored,) = (tmp_path / "results").rglob("regions-0.jsonl")
        assert [json.loads(line)["photo"] for line in stored.read_text().splitlines()] == searched
        with stored.open("a") as file:
            file.write('{"photo": "./yollava-data/te')  # a line that was cut short
        if replaced:
            photo = tmp_path / "data" / searched[0].replace("./yollava-data", "YoLLaVA")
            Image.open(photo).rotate(180).save(photo)
        stop_after, before = -1, searched.copy()
        searched.clear()
        assert_ran(ask("--resume", stored.parent, *run, tmp_path / "results", *served(server)))
        assert (len(before), len(searched)) == (2, 2 if replaced else 1)
        assert set(before) & set(searched) == ({before[0]} if replaced else set())
        assert not stored.exists()
        assert_ran(ask(*run, tmp_path / "whole", *served(server)))
    found, whole = (records(only_run(tmp_path / name)) for name in ("results", "whole"))
    assert len(found) == 3 and [r["regions"] for r in found] == [r["regions"] for r in whole]


def test_regions_count_where_all_that_is_asked_about_was_looked_for(ask: Call, world: Path, tmp_path: Path) -> None:
    """Of a limited run other questions may be asked in the end, about concepts not looked for in a photo before."""
    shutil.copytree(world / "data", tmp_path / "data")
    test = tmp_path / "data/YoLLaVA/test"
    question = {"question": "Where is <sks>?", "options": {"A": "here", "B": "there"}, "answer": "A"}
    file = write_json(
        tmp_path / "three.json",
        {
            "pig-cup": {"test/pig-cup/0.png": question, "test/pig-cup/1.png": question},
            "lamp": {"test/pig-cup/0.png": question},
        },
    )
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--json_path", file, "--limit", 2)
    with ChatServer(lambda body, n: (500, "broken")) as server:
        assert_ran(ask(*run, *served(server)), 1)
    folder = only_run(tmp_path / "results")
    (test / "pig-cup/1.png").unlink()
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--resume", folder, *run, *served(server)))
    assert [[r["concept"] for r in record["regions"]] for record in records(folder)] == [["pig-cup"], ["lamp"]]


@pytest.mark.parametrize("processes", [1, 2])
def test_regions_of_all_processes_are_kept(world: Path, models: Path, tmp_path: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]

    def start(server: ChatServer, *options: object) -> None:
        run = (*places(world, models, tmp_path), "--dataset", "yollava", *served(server), *options)
        subprocess.run(
            [*command, str(ROOT / "vqa.py"), *map(str, run)], capture_output=True, timeout=300, env=script_environment()
        )

    with ChatServer(lambda body, n: (500, "broken")) as server:
        start(server)
    folder = only_run(tmp_path / "results")
    files = sorted(folder.glob("regions-*.jsonl"))
    assert [file.name for file in files] == [f"regions-{n}.jsonl" for n in range(processes)]
    kept = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({record["photo"] for record in kept}) == len(kept) == 3
    for record in kept:  # as if they had been found elsewhere: so it can be seen that they are in use
        record["regions"][0]["score"] = 0.123
    for file in files:
        file.write_text("".join(json.dumps(r) + "\n" for r in kept if file == files[0] or processes == 1) or "")
    with ChatServer(lambda body, n: "A") as server:
        start(server, "--resume", folder)
    assert [record["regions"][0]["score"] for record in records(folder)] == [0.123] * 3
    assert not list(folder.glob("regions-*"))


def test_a_server_that_cannot_be_asked_is_found_before_photos_are_searched(
    ask: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "locate_concepts", None)  # is not called
    run = ("--dataset", "yollava")
    with ChatServer(lambda body, n: (404, "no such model"), models=("others",)) as server:
        assert_refused(ask(*run, *served(server)), "no such model", "check")
    assert_refused(ask(*run, *served(server)), "nobody answers", server.url)
    multi = ("--dataset", "this-is-my", "--multi_concept", "True")
    with ChatServer(lambda body, n: (401, "who are you"), models=("test",)) as server:
        config = config_with_key(tmp_path, server)
        assert_refused(ask(*multi, *served(server), "--config", config), "judge", "refuses every request")
    assert not (tmp_path / "results").exists()


def test_empty_replies_are_told(ask: Call, nowhere: dict) -> None:
    with ChatServer(lambda body, n: ("A", "", " \n")[n]) as server:
        result = ask("--dataset", "yollava", *served(server))
    assert_ran(result)
    assert "2 replies are empty" in result.stderr


def test_a_server_that_lists_no_models_is_asked_for_a_word(ask: Call, nowhere: dict) -> None:
    with ChatServer(lambda body, n: "A", models=()) as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
    first = server.bodies[0]
    assert (prompt_of(first), first["max_tokens"], len(server.bodies)) == ("Hello", 1, 4)


@pytest.mark.parametrize("slow", ["test", "judge"])
def test_ctrl_c_does_not_wait_for_a_request_in_flight(
    ask: Call, world: Path, models: Path, tmp_path: Path, slow: str
) -> None:
    def answer(body: dict, n: int) -> str:
        if body["model"] == slow:
            asked.append(n)
            time.sleep(20)
        return "outside"

    asked: list[int] = []
    with ChatServer(answer) as server:
        config = config_with_key(tmp_path, server)
        options = ("--dataset", "this-is-my", "--multi_concept", "True", "--task", "base_vlm_vqa", "--config", config)
        command = [*places(world, models, tmp_path), *options, *served(server), "--timeout", 60]
        result = interrupted(command, lambda: bool(asked))
        assert_ran(result, 130)
        (run,) = (path.parent for path in (tmp_path / "results").rglob("config.json"))
        assert f"go on with --resume {run}" in result.stderr and "stopped" in result.stderr


CONFIG = {"argv": ["--dataset", "yollava"], "working_folder": ".", "settings": {}, "questions": {}}


def test_ctrl_c_is_answered_where_there_is_no_run_to_go_on_with(
    ask: Call, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pekit.questions.read_questions", stop)
    monkeypatch.setattr("pekit.vqa_runs.regrade", stop)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for result in (ask("--dataset", "yollava"), call(main, "--regrade", tmp_path)):
        assert_ran(result, 130)
        assert "stopped\n" in result.stderr and "--resume" not in result.stderr


def test_a_server_that_turns_refusing_does_not_hide_that_answers_are_kept(
    ask: Call, nowhere: dict, tmp_path: Path
) -> None:
    with ChatServer(lambda body, n: "A" if n < 2 or "again" in server.keys else (401, "who are you")) as server:
        result = ask("--dataset", "yollava", *served(server), "--concurrency", 1)
        assert_refused(result, "openai:test", "refuses")
        (answers,) = (tmp_path / "results").rglob("answers.jsonl")
        assert len(answers.read_text().splitlines()) == 2
        assert f"what is finished is kept; go on with --resume {answers.parent}" in result.stderr
        server.keys.append("again")
        assert_ran(ask("--resume", answers.parent))
        assert len(server.bodies) == 4 and len(records(answers.parent)) == 3


def test_resume_refuses_another_run(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
        run = only_run(tmp_path / "results")
        assert_refused(ask("--resume", run, "--max_new_tokens", 7), "max_new_tokens", "7")
        assert_refused(ask("--resume", run, "--with_baseline"), "with_baseline")
        before = (run / "results_summary.json").read_bytes()
        asked = len(server.bodies)
        assert_ran(ask("--resume", run))  # nothing is left to ask
        assert len(server.bodies) == asked and (run / "results_summary.json").read_bytes() == before
        assert_refused(ask("--resume", run, "--regrade", run), "--resume", "--regrade", "not allowed")
        with held(run):
            assert_refused(ask("--resume", run), str(run), "still going on in another process")
        assert not (run / ".lock").exists()
        (run / "answers.jsonl").write_text('{"number": 1}\n')
        assert_refused(ask("--resume", run), "answers.jsonl", "is no answer")
    assert_refused(ask("--resume", tmp_path), str(tmp_path), "config.json")


def test_resume_refuses_what_replies_depend_on(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
        run = only_run(tmp_path / "results")
        for option, value in (
            ("--detect_thresh", 0.5), ("--prompt_style", "released"), ("--task", "vqa_names"), ("--limit", 2),
            ("--seed", 7), ("--n_training_views", 2), ("--dino_img_size", 224),
            ("--dtype", "bfloat16"), ("--vlm_model", "openai:other"), ("--vlm_dtype", "bfloat16"),
            ("--system_message", "Be brief."),
        ):  # fmt: skip
            assert_refused(ask("--resume", run, option, value), str(run), f"another {option} ")
        assert len(server.bodies) == 3


def test_resume_refuses_other_models_in_the_same_folder(ask: Call, nowhere: dict, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    run = ("--dataset", "yollava", "--models", tmp_path / "models")
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask(*run, *served(server)))
        weights = tmp_path / "models/grounding/model.safetensors"
        weights.write_bytes(bytes(weights.stat().st_size))
        assert_refused(ask("--resume", only_run(tmp_path / "results"), *run), "another set of models")


def test_replies_of_two_lvlms_are_not_mixed_and_the_first_command_is_kept(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    again = {**CONFIG, "argv": ["--resume", str(tmp_path)], "working_folder": "elsewhere"}
    describe_lvlm(tmp_path, again, {"source": "lvlm", "fingerprint": "one"})
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored == CONFIG | {"lvlm": {"source": "lvlm", "fingerprint": "one"}}
    with pytest.raises(UserError, match=r"holds replies of another LVLM \(one\)"):
        describe_lvlm(tmp_path, again, {"source": "lvlm", "fingerprint": "two"})
    assert json.loads((tmp_path / "config.json").read_text()) == stored


def test_an_empty_reply_is_not_asked_for_again(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
        run = only_run(tmp_path / "results")
        before = (run / "results_summary.json").read_bytes()
        assert_ran(ask("--resume", run))
        assert len(server.bodies) == 3 and (run / "results_summary.json").read_bytes() == before
    assert (summary(run)["unanswered"], summary(run)["overall"]["total"]) == (0, 3)


def test_resume_asks_only_the_variant_that_is_missing(
    ask: Call, nowhere: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", "--with_baseline", *served(server)))
        run = only_run(tmp_path / "results")
        final = (run / "results_summary.json").read_bytes()
        lines = (run / "answers.jsonl").read_text().splitlines(keepends=True)
        unanswered = json.loads(lines[4]) | {"reply": None, "error": "the server was away"}
        (run / "answers.jsonl").write_text("".join([*lines[:3], json.dumps(unanswered) + "\n", lines[5]]))

        def refuse(*_: object) -> None:
            raise UserError("the judge is away")

        with monkeypatch.context() as stopped:
            stopped.setattr("pekit.asking.graded", refuse)
            assert_refused(ask("--resume", run), "the judge is away")
        assert not (run / "results_summary.json").exists()  # it would not tell of the answers that are there now
        assert not (run / "results_vqa.txt").exists()
        assert_ran(ask("--resume", run))
        assert sorted(prompt_of(body) for body in server.bodies[6:]) == [
            "Is lamp on? A.yes or B.no",
            "Where is pig-cup? A.left or B.right",
        ]
    assert (run / "results_summary.json").read_bytes() == final


def run_whose_first_photo_vanishes(
    ask: Call, world: Path, tmp_path: Path, answered: int, *options: object
) -> tuple[Path, tuple[object, ...]]:
    """The folder of a run that has so many answers, whose first photo is gone since, and its data's options."""
    shutil.copytree(world / "data", tmp_path / "data")
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data")
    with ChatServer(lambda body, n: "A" if n < answered else (503, "busy")) as server:
        assert_ran(ask(*run, *options, *served(server), "--concurrency", 1), 1)
    (tmp_path / "data/YoLLaVA/test/pig-cup/0.png").unlink()
    return only_run(tmp_path / "results"), run


def test_a_question_answered_before_its_photo_vanished_counts_once(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    folder, run = run_whose_first_photo_vanishes(ask, world, tmp_path, 2)
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--resume", folder, *run, *served(server)))
        assert len(server.bodies) == 1
    found = summary(folder)
    assert found["overall"]["total"] == 3
    assert found["missing_photos"]["photos"] == ["./yollava-data/test/lamp/lost.png"]  # which was never there


def test_the_only_photo_of_a_concept_may_vanish_once_it_is_answered(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data")
    with ChatServer(lambda body, n: "A" if "lamp" in prompt_of(body) else (503, "busy")) as server:
        assert_ran(ask(*run, *served(server)), 1)
    folder = only_run(tmp_path / "results")
    (tmp_path / "data/YoLLaVA/test/lamp/0.png").unlink()
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--resume", folder, *run, *served(server)))
        assert len(server.bodies) == 2
    assert summary(folder)["overall"]["total"] == 3


def test_a_run_ended_with_another_grader_says_so(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
    run = only_run(tmp_path / "results")
    assert json.loads((run / "config.json").read_text())["settings"]["grader"] == "gpt"
    assert_ran(ask("--resume", run, "--grader", "exact"))
    assert json.loads((run / "config.json").read_text())["settings"]["grader"] == "exact"


def test_the_judge_is_asked_about_a_reply_whose_photo_vanished(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    photos = tmp_path / f"data/This-is-My-Img/Multi-concept/test/{PAIR}"
    letter = {"question": "Who is it?", "options": {"A": "Casey", "B": "Bo"}, "answer": "A"}
    questions = {str(photos / "0.png"): letter, str(photos / "1.png"): {"question": "Where?", "answer": "Outside"}}
    file = write_json(photos.parent / "two.json", {"Casey_Caseys boosted board": questions})
    options = ("--dataset", "this-is-my", "--multi_concept", "--data_folder", tmp_path / "data", "--json_path", file)
    with ChatServer(lambda body, n: "Yes" if body["model"] == "judge" else "A") as server:
        assert_ran(ask(*options, *served(server), "--grader", "none"))
        folder = only_run(tmp_path / "results")
        (photos / "1.png").unlink()
        config = config_with_key(tmp_path, server)
        assert_ran(ask("--resume", folder, *options, *served(server), "--grader", "gpt", "--config", config))
        assert [body["model"] for body in server.bodies] == ["test", "test", "judge"]
    assert [(r["grader"], r["correct"]) for r in records(folder)] == [("letter", True), ("gpt", True)]


def test_a_limited_run_whose_photo_vanished_asks_no_more_and_is_regraded(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    folder, run = run_whose_first_photo_vanishes(ask, world, tmp_path, 1, "--limit", 2)
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--resume", folder, *run, *served(server)))
        assert [prompt_of(body) for body in server.bodies] == ["Where is pig-cup? A.left or B.right"]
    assert summary(folder)["overall"]["total"] == 2
    result = ask("--regrade", folder)
    assert_ran(result)
    assert "were not asked" not in result.stderr


def test_a_limited_run_keeps_to_its_questions_when_a_missing_photo_is_back(
    ask: Call, call: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    photo = tmp_path / "data/YoLLaVA/test/pig-cup/1.png"
    content = photo.read_bytes()
    photo.unlink()
    with ChatServer(lambda body, n: "A") as server:
        options = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--limit", 2)
        assert_ran(ask(*options, *served(server)))
        run = only_run(tmp_path / "results")
        assert [record["number"] for record in records(run)] == [1, 3]
        photo.write_bytes(content)
        assert_ran(call(main, "--resume", run))
    assert [record["number"] for record in records(run)] == [1, 3]


def test_replies_about_a_photo_that_has_changed_are_asked_for_again(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "data", tmp_path / "data")
    run = ("--dataset", "yollava", "--data_folder", tmp_path / "data", "--with_baseline")
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask(*run, *served(server)))
    folder = only_run(tmp_path / "results")
    write_photos(tmp_path / "data/YoLLaVA/test/pig-cup", ["0.png"], seed=77)
    with ChatServer(lambda body, n: "B") as server:
        result = ask("--resume", folder, *run, *served(server))
        assert_ran(result)
        assert [prompt_of(body) for body in server.bodies] == ["What colour is pig-cup? A.red or B.blue"] * 2
    assert (
        "2 replies are about photos that have changed since, such as ./yollava-data/test/pig-cup/0.png" in result.stderr
    )
    assert [record["reply"] for record in records(folder)] == ["B", "B", "A", "A", "A", "A"]
    (tmp_path / "data/YoLLaVA/test/pig-cup/0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    result = ask("--resume", folder, *run)  # the replies are all there is of what it was
    assert_ran(result)
    assert "git lfs pull" in result.stderr
    assert [record["reply"] for record in records(folder)] == ["B", "B", "A", "A", "A", "A"]


def test_resume_refuses_other_views_and_descriptions(ask: Call, nowhere: dict, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "features", tmp_path / "features")
    run = ("--dataset", "yollava", "--features_folder", tmp_path / "features")
    texts = write_json(tmp_path / "texts.json", {"pig-cup": "A red cup."})
    told = ("--dataset", "yollava", "--task", "tqa", "--descriptions", texts)
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask(*run, *served(server)))
        assert_ran(ask(*told, *served(server)))
        asked = len(server.bodies)
        shown, read = (only_run(tmp_path / "results" / task) for task in ("vqa", "tqa"))
        lamp, cup = (tmp_path / f"features/yollava/extracted_features/{key}/0_0.pt" for key in ("lamp", "pig-cup"))
        shutil.copy(lamp, cup)
        write_json(texts, {"pig-cup": "A blue cup."})
        assert_refused(ask("--resume", shown, *run), "another set of views")
        assert_refused(ask("--resume", read), "another set of questions or descriptions")
        assert len(server.bodies) == asked


def test_resume_refuses_photos_turned_otherwise(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
        assert_refused(ask("--resume", only_run(tmp_path / "results"), "--exif", "True"), "with another --exif")
        assert len(server.bodies) == 3


def test_the_judge_is_in_the_results_and_its_key_is_not(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    run = ("--dataset", "this-is-my", "--multi_concept")
    with ChatServer(lambda body, n: "Yes") as server:
        asked = ask(*run, *served(server), "--config", config_with_key(tmp_path, server))
        assert_ran(asked)
        folder = only_run(tmp_path / "results")
        judge = json.loads((folder / "config.json").read_text())["judge"]
        assert judge["base_url"] == server.url and judge["model"] and judge["instruction_version"]
        assert_ran(ask("--regrade", folder, "--grader", "exact"))
    (again,) = folder.parent.glob("*-regraded")
    config = json.loads((again / "config.json").read_text())
    assert (config["judge"], config["settings"]["grader"]) == (None, "exact")
    assert_no_key(tmp_path / "results", asked)


def test_a_run_started_elsewhere_says_where(
    ask: Call, nowhere: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", *served(server)))
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        result = ask("--resume", only_run(tmp_path / "results"), *served(server))
    assert_ran(result)
    assert f"the run was started in {tmp_path}: " in result.stderr


def test_regrade_refuses_what_it_has_no_use_for(call: Call, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for option in (("--dry_run",), ("--limit", 2), ("--task", "vqa_names"), ("--detect_thresh", 0.8)):
        assert_refused(call(main, "--regrade", tmp_path, "--grader", "exact", *option), option[0], "--regrade")


def test_thresholds_are_similarities(ask: Call) -> None:
    for value in ("75", "nan", "0.5,0.6"):
        assert_refused(ask("--detect_thresh", value), "--detect_thresh", value)


def test_regrade_asks_the_judge_only(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> str:
        return "Yes" if body["model"] == "judge" else "outside"

    with ChatServer(answer) as server:
        config = config_with_key(tmp_path, server)
        options = ("--dataset", "this-is-my", "--multi_concept", "True", "--grader", "exact", *served(server))
        assert_ran(ask(*options))
        run = only_run(tmp_path / "results")
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        assert [r["correct"] for r in records(run)] == [False, True, False]
        asked = len(server.bodies)
        result = ask("--regrade", run, "--grader", "gpt", "--config", config)
        assert_ran(result)
        assert [body["model"] for body in server.bodies[asked:]] == ["judge"] * 2
        (again,) = run.parent.glob("*-regraded")
        assert [r["correct"] for r in records(again)] == [True, True, False]
        assert [r["grader"] for r in records(again)] == ["gpt", "gpt", "letter"]
        assert summary(again)["missing_photos"]["count"] == 1
        assert before == {path.name: path.read_bytes() for path in run.iterdir()}
        assert_ran(ask("--regrade", run, "--grader", "gpt", "--config", config))
        assert len(server.bodies) == asked + 2  # verdicts were kept
    assert_no_key(tmp_path, result)


def test_questions_without_answers_are_asked_where_nothing_is_graded(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    photos = {"test/pig-cup/0.png": {"question": "What is <sks> standing on?"}}
    photos["test/pig-cup/1.png"] = {"question": "Where?", "answer": "outside"}
    file = write_json(tmp_path / "own.json", {"pig-cup": photos})
    run = ("--dataset", "yollava", "--json_path", file)
    with ChatServer(lambda body, n: "Yes" if body["model"] == "judge" else "a table") as server:
        config = config_with_key(tmp_path, server)
        for grader in ("gpt", "exact"):
            result = ask(*run, *served(server), "--grader", grader, "--config", config)
            assert_refused(result, "own.json, 'pig-cup', 'test/pig-cup/0.png'", "no correct_answer", "--grader none")
        assert not server.bodies
        assert_ran(ask(*run, *served(server), "--grader", "none"))
        folder = only_run(tmp_path / "results")
        assert [(r["reply"], r["answer"]) for r in records(folder)] == [("a table", ""), ("a table", "outside")]
        assert_ran(ask("--regrade", folder, "--grader", "gpt", "--config", config))
        assert len(server.bodies) == 3  # nobody can judge the first
    (again,) = folder.parent.glob("*-regraded")
    assert [(r["grader"], r["correct"]) for r in records(again)] == [("none", None), ("gpt", True)]
    assert records(again)[0]["reason"] == "the question file has no answer to it"


def test_regrading_an_interrupted_run_says_what_is_missing(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", "--with_baseline", "--limit", 2, *served(server)))
    run = only_run(tmp_path / "results")
    lines = (run / "answers.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    assert_ran(ask("--regrade", run))
    (run / "answers.jsonl").write_text("".join(lines[:3]))  # the second question has no baseline
    result = ask("--regrade", run)
    assert_ran(result, 1)
    assert f"1 of 2 questions were not asked: --resume {run} first" in result.stderr
    assert len(list(run.parent.glob("*-regraded"))) == 2
    (run / "answers.jsonl").unlink()
    assert_refused(ask("--regrade", run), str(run), f"--resume {run}")
    assert len(list(run.parent.glob("*-regraded"))) == 2


def test_regrading_leaves_no_folder_where_the_judge_refuses(
    ask: Call, nowhere: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer(lambda body, n: (401, "no") if body["model"] == "judge" else "outside") as server:
        config = config_with_key(tmp_path, server)
        options = ("--dataset", "this-is-my", "--multi_concept", "True", "--grader", "exact", *served(server))
        assert_ran(ask(*options))
        run = only_run(tmp_path / "results")
        assert_refused(ask("--regrade", run, "--grader", "gpt", "--config", config), "judge", "refuses")
    assert list(run.parent.iterdir()) == [run]
    monkeypatch.chdir(run)
    assert_ran(ask("--regrade", "."))
    (again,) = run.parent.glob("*-regraded")
    assert json.loads((again / "config.json").read_text())["regraded_from"] == run.name


# --- before anything is loaded -------------------------------------------------------------------------------------


def test_missing_key_is_found_before_any_model_is_loaded(
    ask: Call, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(asking, "run_vqa", loaded)
    options = ("--dataset", "this-is-my", "--multi_concept", "True", "--vlm_model", world / "lvlm")
    assert_refused(ask(*options), "config.ini", "OPENAI_API_KEY", "--grader")
    for calm in (("--grader", "exact"), ("--grader", "none")):
        with pytest.raises(AssertionError, match="loaded"):
            ask(*options, *calm)
    with pytest.raises(AssertionError, match="loaded"):  # every question has options: no judge is needed
        ask("--dataset", "yollava", "--vlm_model", world / "lvlm")


def test_dry_run_asks_nobody(ask: Call, nowhere: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "open_lvlm", lambda *args: pytest.fail("the LVLM was looked for"))
    nowhere["0.png"] = [Detection("Casey-man", 0.9, HERE), Detection("Caseys boosted board-skateboard", 0.8, THERE)]
    result = ask("--dataset", "this-is-my", "--multi_concept", "True", "--dry_run", "--limit", 2)
    assert_ran(result)
    assert (
        'In this image, the entity enclosed in a blue box is called "CASEY" and the entity enclosed in a red box is '
        'called "CASEY\'S BOOSTED BOARD". Never mention the boxes and their colors. Answer the following question: '
        "What is Casey doing?\n"
    ) in result.stdout
    assert "Where is he?" in result.stdout and "What colour" not in result.stdout
    overlays = sorted((tmp_path / "results").rglob("*.png"))
    assert [path.name for path in overlays] == ["0001_0.png", "0002_1.png"]
    assert Image.open(overlays[0]).getpixel((66, 60)) == (0, 0, 255)
    assert not list((tmp_path / "results").rglob("answers.jsonl"))


def test_a_dry_run_words_three_questions_or_as_many_as_asked_for(ask: Call, tmp_path: Path) -> None:
    questions = {str(n): {"question": f"Is it {n}?", "answer": "yes"} for n in range(6)}
    file = write_json(tmp_path / "questions.json", {"pig-cup": questions})
    for limit, count in (((), 3), (("--limit", 5), 5)):
        result = ask("--dataset", "yollava", "--task", "tqa", "--json_path", file, "--dry_run", *limit)
        assert_ran(result)
        assert re.findall(r"Is it \d\?", result.stdout) == [f"Is it {n}?" for n in range(count)]


@pytest.mark.parametrize("viewer", [True, False])
@pytest.mark.parametrize("dry_run", [True, False])
def test_show_opens_what_the_lvlm_is_shown(
    ask: Call, nowhere: dict, monkeypatch: pytest.MonkeyPatch, dry_run: bool, viewer: bool
) -> None:
    """Once for each question, not for the baseline; where there is no viewer, that is told once."""
    shown: list[tuple] = []

    def show(image: Image.Image, title: str) -> bool:
        shown.append((title, image.size, image.getpixel((66, 60))))
        return viewer

    monkeypatch.setattr(asking.ImageShow, "show", show)
    asking._tell_of_no_viewer.cache_clear()
    nowhere["0.png"] = [Detection("pig-cup", 0.9, HERE)]
    with ChatServer(lambda body, n: "B") as server:
        options = ("--dry_run",) if dry_run else ("--with_baseline", *served(server))
        result = ask("--dataset", "yollava", "--limit", 2, "--show", *options)
    assert_ran(result)
    (outlined, other), folder = shown, "./yollava-data/test/pig-cup"
    assert outlined == (f"{folder}/0.png", (640, 480), (0, 0, 255))
    assert other[:2] == (f"{folder}/1.png", (640, 480)) and other[2] != (0, 0, 255)
    assert result.stderr.count("this system has no viewer") == (0 if viewer else 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--json_path", "none.json"), ["none.json", "--json_path"]),
        (("--features_folder", "none"), ["extraction.py"]),
        (("--vlm_model", "./none"), ["--vlm_model", "./none"]),
        (("--vlm_model", "openai:gpt"), ["VLM_API_KEY"]),
        (("--task", "base_vlm_vqa", "--with_baseline"), ["--with_baseline"]),
        (("--device", "cuda:1", "--device_ids", "0,1"), ["--device cuda:1", "--device_ids"]),
        (
            ("--device", "cuda:99", "--vlm_model", "openai:x", "--vlm_base_url", "http://localhost:9/v1"),
            ["--device cuda:99", "--device cpu"],
        ),
        (("--vlm_model", "openai:x", "--vlm_base_url", "http://me:pw@host/v1"), ["password"]),
        (("--vlm_model", "openai:x", "--vlm_base_url", "host:80/v1"), ["--vlm_base_url", "http://HOST:PORT/v1"]),
        (("--vlm_model", "openai:", "--vlm_base_url", "http://host/v1"), ["openai:<name>"]),
        (("--vlm_model", "my/model", "--vlm_base_url", "http://host/v1"), ["--vlm_base_url", "openai:<name>"]),
        (("--multi_concept", "True"), ["--multi_concept goes with --dataset this-is-my"]),
        (("--multi_concept", "True", "--json_path", "q.json"), ["--multi_concept goes with --dataset this-is-my"]),
        (("--timeout", "0"), ["--timeout", "above 0"]),
        (("--timeout", "-1"), ["--timeout", "'-1'"]),
        (("--timeout", "nan"), ["--timeout", "'nan'"]),
        (("--retry_wait", "-1"), ["--retry_wait", "'-1'"]),
        (("--retry_wait", "inf"), ["--retry_wait", "'inf'"]),
    ],
)
def test_mistakes_are_one_sentence(ask: Call, nowhere: dict, options: tuple, words: list[str], tmp_path: Path) -> None:
    assert_refused(ask("--dataset", "yollava", *options), *words)
    assert not list((tmp_path / "results").rglob("config.json"))


def test_a_wrong_model_is_found_before_the_recognition(ask: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def locate(*args: object) -> None:
        raise UserError("the recognition ran first")

    monkeypatch.setattr(asking, "locate_concepts", locate)
    assert_refused(ask("--dataset", "yollava", "--vlm_model", "./none"), "./none")


def test_a_run_that_loses_a_process_is_named(ask: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def locate(*args: object) -> None:
        raise PeerLostError("another process of this run has ended early")

    monkeypatch.setattr(asking, "locate_concepts", locate)
    with ChatServer(lambda body, n: "A") as server:
        result = ask("--dataset", "yollava", *served(server))
    assert_ran(result, 1)
    (config,) = (tmp_path / "results").rglob("config.json")
    assert f"go on with --resume {config.parent}" in result.stderr


def test_unknown_options_are_refused(ask: Call) -> None:
    assert_refused(ask("--dataset", "yollava", "--vlm", "x"), "--vlm x")


def test_a_run_goes_on_when_other_concepts_and_photos_come(
    ask: Call, nowhere: dict, world: Path, tmp_path: Path
) -> None:
    """The mends that the first run asks for, a missing photo and missing views, do not cost its replies."""
    shutil.copytree(world / "data/YoLLaVA", tmp_path / "own/YoLLaVA")
    stored, views = (folder / "yollava/extracted_features" for folder in (world / "features", tmp_path / "f"))
    shutil.copytree(stored / "pig-cup", views / "pig-cup")
    lost = tmp_path / "own/YoLLaVA/test/pig-cup/1.png"
    content = lost.read_bytes()
    lost.unlink()
    with ChatServer(lambda body, n: "B") as server:
        own = ("--data_folder", tmp_path / "own", "--features_folder", tmp_path / "f", *served(server))
        assert_ran(ask("--dataset", "yollava", *own))
        [run] = (answers.parent for answers in tmp_path.rglob("answers.jsonl"))
        assert [r["photo_name"][-13:] for r in records(run)] == ["pig-cup/0.png"]
        lost.write_bytes(content)
        shutil.copytree(stored / "lamp", views / "lamp")
        assert_ran(ask("--resume", run, *own))
        assert len(server.bodies) == 3
        assert [r["number"] for r in records(run)] == [1, 2, 3]
        # but views that replies depend on may not change
        for file in (views / "lamp").iterdir():
            shutil.copy(views / "pig-cup" / file.name, file)
        assert_refused(ask("--resume", run, *own), "another set of views of 'lamp'")


def test_all_replies_that_come_are_kept_where_the_run_ends_early(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    """Two are under way when the key is refused to a third."""
    refused = threading.Event()

    def answer(body: dict, n: int) -> Any:
        if "off" in prompt_of(body) or "on?" in prompt_of(body):
            refused.set()
            return (401, "who are you")
        refused.wait(10)
        time.sleep(0.3)
        return "A"

    with ChatServer(answer) as server:
        assert_refused(ask("--dataset", "yollava", *served(server), "--concurrency", 3), "refuses every request")
    [answers] = tmp_path.rglob("answers.jsonl")
    assert [r["reply"] for r in records(answers.parent)] == ["A", "A"]
    assert "lvlm" in json.loads((answers.parent / "config.json").read_text())  # whose replies they are


def test_a_dry_run_checks_the_views(ask: Call, call: Call, tmp_path: Path, world: Path, models: Path) -> None:
    common = ("--data_folder", world / "data", "--features_folder", tmp_path / "f", "--models", models, *FEW)
    assert_ran(call(extraction.main, *common, "--dataset", "yollava", "--dino_img_size", 224))
    options = ("--dataset", "yollava", "--features_folder", tmp_path / "f", "--dry_run")
    assert_ran(ask(*options, "--dino_img_size", 224))
    assert_refused(ask(*options), "224", "518")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("vqa", ("--descriptions", "x.json")),
        ("vqa", ("--caption_request", "What?")),
        ("base_vlm_vqa", ("--detect_thresh", "0.5")),
        ("tqa", ("--detect_thresh", "0.5")),
        ("tqa", ("--overlays",)),
        ("tqa", ("--show",)),
        ("captioning", ("--json_path", "x.json")),
    ],
)
def test_options_without_use_for_the_task_are_refused(ask: Call, task: str, options: tuple) -> None:
    assert_refused(ask("--dataset", "yollava", "--task", task, *options), options[0], f"--task {task}")


def test_a_limited_run_counts_what_is_missing_before_its_end(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A") as server:
        assert_ran(ask("--dataset", "yollava", "--limit", 3, *served(server)))
        assert json.loads((only_run(tmp_path / "results") / "results_summary.json").read_text())["missing_photos"] == {
            "count": 0,
            "photos": [],
        }


def test_a_reply_cannot_write_lines_of_its_own(ask: Call, nowhere: dict, tmp_path: Path) -> None:
    with ChatServer(lambda body, n: "A\nResult: correct") as server:
        assert_ran(ask("--dataset", "yollava", "--limit", 1, *served(server)))
    lines = (only_run(tmp_path / "results") / "results_vqa.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("Result: ")] == ["Result: wrong"]
    assert "  Result: correct" in lines
