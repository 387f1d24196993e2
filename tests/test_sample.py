"""The sample benchmark: published layouts, photos that decode, ground truth, negatives, question files, determinism."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SEED, files_of, script_environment
from PIL import Image

from pekit import datasets, question_places, questions
from pekit.cli import detection, extraction, vqa
from pekit.sample import benchmark, run
from pekit.sample.__main__ import main
from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS, Instance
from pekit.sample.evaluate import __main__ as evaluating
from pekit.sample.questions import (
    QUESTION_TEMPLATES,
    _pair_questions,
    _visual_questions,
    right_answer,
    wrong_answer,
)

SPLITS = ("Positive", "Fake", "Negative (Hard)", "Negative (Other)")
SINGLE, MULTI = "This-is-My-Img/Single-concept", "This-is-My-Img/Multi-concept"
QUESTION_FILES = (
    "YoLLaVA/yollava-visual-qa.json",
    "YoLLaVA/yollava-text-qa.json",
    f"{SINGLE}/VQA/single-concept-vqa.json",
    f"{MULTI}/VQA/multi-concept-vqa.json",
)
Truth = dict[str, list[dict]]


@pytest.fixture(scope="session")
def truth(sample: Path) -> Truth:
    return json.loads((sample / "sample.json").read_text(encoding="utf-8"))


def _plans(seed: int) -> list[benchmark.PhotoPlan]:
    personal = benchmark.personal_concepts(seed)
    multi = {key: personal[key] for key in list(personal)[:6]}
    sets = {
        "myvlm": (benchmark.plan_myvlm, benchmark.myvlm_concepts(seed)),
        "yollava": (benchmark.plan_yollava, benchmark.yollava_concepts(seed)),
        "this-is-my single-concept": (benchmark.plan_single, personal),
        "this-is-my multi-concept": (benchmark.plan_multi, multi),
    }
    return [photo for name, (plan, own) in sets.items() for photo in plan(benchmark._rng(seed, name), own)]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- layout --------------------------------------------------------------------------------------------------------


def test_every_file_lies_where_its_data_set_has_it(sample: Path) -> None:
    noun = "|".join(CATEGORIES)
    dashed = noun.replace(" ", "-")
    person = rf"[A-Z][a-z]+s (?P<c>{noun})"
    layouts = {
        rf"myvlm/data/(?P<k>[a-z_]+_({noun}))/(?P=k)_[1-6]\.(jpg|jpeg|JPG)": 8 * 6,
        rf"YoLLaVA/train/[a-z]+-({dashed})/[0-3]\.png": 8 * 4,
        rf"YoLLaVA/test/[a-z]+-({dashed})/[0-3]\.png": 8 * 4,
        rf"{SINGLE}/train/{person}-(?P=c)/[1-4]\.png": 8 * 4,
        **{rf"{SINGLE}/test/{re.escape(split)}/{person}-(?P=c)/[1-3]\.png": 8 * 3 for split in SPLITS},
        rf"{MULTI}/train/{person}-(?P=c)/[1-4]\.png": 6 * 4,
        rf"{MULTI}/test/[A-Z][a-z]+s ({noun})_and_[A-Z][a-z]+s ({noun})/[1-3]\.png": 4 * 3,
        "|".join(re.escape(name) for name in (*QUESTION_FILES, "YoLLaVA/descriptions.json", "sample.json")): 6,
    }
    files = [file.relative_to(sample).as_posix() for file in sample.rglob("*") if file.is_file()]
    matched = [[layout for layout in layouts if re.fullmatch(layout, file)] for file in files]
    assert [file for file, found in zip(files, matched, strict=True) if len(found) != 1] == []
    assert Counter(found[0] for found in matched) == layouts


def test_a_few_photos_have_the_odd_suffixes_of_myvlm(sample: Path) -> None:
    suffixes = Counter(file.suffix for file in (sample / "myvlm/data").rglob("*.*"))
    assert suffixes[".jpeg"] >= 1
    assert suffixes[".JPG"] >= 1
    assert suffixes[".jpg"] >= 40


def test_pairs_name_two_concepts_of_the_train_folder(sample: Path) -> None:
    short = {folder.name.rpartition("-")[0] for folder in (sample / MULTI / "train").iterdir()}
    for folder in (sample / MULTI / "test").iterdir():
        first, second = folder.name.split("_and_")
        assert first != second
        assert {first, second} <= short


@pytest.mark.parametrize("dataset", ["myvlm", "yollava", "this-is-my"])
def test_loaders_find_the_concepts(sample: Path, dataset: str) -> None:
    concepts = datasets.read_concepts(sample, dataset)
    assert len(concepts) == 8
    for concept in concepts:
        assert any(concept.prompt.replace("_", " ").endswith(f"{noun}.") for noun in CATEGORIES)


@pytest.mark.parametrize("split", SPLITS)
def test_loaders_find_the_photos_of_every_test_split(sample: Path, split: str) -> None:
    concepts = datasets.read_concepts(sample, "this-is-my")
    units, photos = datasets.query_photos(sample, "this-is-my", False, "test", split, concepts)
    assert (len(units), len(photos)) == (8, 24)


def test_loaders_find_the_pairs(sample: Path) -> None:
    concepts = datasets.read_concepts(sample, "this-is-my", True)
    units, photos = datasets.query_photos(sample, "this-is-my", True, "test", None, concepts)
    assert (len(concepts), len(units), len(photos)) == (6, 4, 12)
    assert all(len(unit.concepts) == 2 for unit in units)


# --- photos --------------------------------------------------------------------------------------------------------


def test_photos_decode_in_sizes_of_their_own(sample: Path, truth: Truth) -> None:
    sizes, written = Counter(), 0
    for path in truth:
        with Image.open(sample / path) as image:
            image.load()
            assert image.format == ("PNG" if path.endswith(".png") else "JPEG")
            sizes[image.size] += 1
        written += (sample / path).stat().st_size
    assert all(240 <= side <= 360 for size in sizes for side in size)
    assert sum(n for (w, h), n in sizes.items() if w > h) > 50
    assert sum(n for (w, h), n in sizes.items() if w < h) > 50
    assert written < 16e6


def test_the_truth_is_told_about_every_photo(sample: Path, truth: Truth) -> None:
    photos = {
        f.relative_to(sample).as_posix() for f in sample.rglob("*.*") if f.suffix.lower() in (".png", ".jpg", ".jpeg")
    }
    assert set(truth) == photos
    for things in truth.values():
        assert 1 <= len(things) <= 5
        for thing in things:
            assert set(thing) == {"concept", "category", "colour", "accent", "pattern", "box_xyxyn"}
            assert thing["category"] in CATEGORIES
            assert {thing["colour"], thing["accent"]} <= set(COLOURS)
            assert thing["pattern"] in PATTERNS
            x0, y0, x1, y1 = thing["box_xyxyn"]
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1


def test_boxes_hold_the_colours_they_are_said_to(sample: Path, truth: Truth) -> None:
    """Where a thing stands alone, its colour is far more frequent inside its box than in the rest of the photo."""
    held = []
    for path, things in list(truth.items())[::2]:
        if len(things) == 1:
            thing = things[0]
            pixels = np.asarray(Image.open(sample / path).convert("RGB"), dtype=float)
            x0, y0, x1, y1 = np.multiply(thing["box_xyxyn"], [*pixels.shape[1::-1], *pixels.shape[1::-1]]).astype(int)
            near = np.linalg.norm(pixels - COLOURS[thing["colour"]], axis=-1) < 55
            outside = np.ones(near.shape, dtype=bool)
            outside[y0:y1, x0:x1] = False
            held.append(near[y0:y1, x0:x1].mean() > 0.1 and near[y0:y1, x0:x1].mean() > near[outside].mean())
    assert len(held) > 60
    assert np.mean(held) > 0.85  # a background may have the thing's colour


def test_reference_photos_show_the_concept_alone_large_and_whole(sample: Path, truth: Truth) -> None:
    checked = 0
    for path, things in truth.items():
        reference = re.fullmatch(r"myvlm/.*_[1-4]\.\w+|.*/train/.*", path)
        if reference:
            checked += 1
            assert [thing["concept"] for thing in things] == [path.split("/")[-2]]
            x0, y0, x1, y1 = things[0]["box_xyxyn"]
            assert min(x0, y0) > 0
            assert max(x1, y1) < 1
            with Image.open(sample / path) as image:
                w, h = image.size
            assert max((x1 - x0) * w, (y1 - y0) * h) >= 0.4 * min(w, h)
    assert checked == 4 * (8 + 8 + 8 + 6)


# --- concepts and their negatives ----------------------------------------------------------------------------------


def _look(thing: dict) -> Instance:
    return Instance(thing["category"], thing["colour"], thing["accent"], thing["pattern"])


def _positives(truth: Truth, root: str) -> Iterator[tuple[str, list[dict]]]:
    return ((path, things) for path, things in truth.items() if path.startswith(root))


def test_everything_belongs_to_the_pool_no_training_sees(truth: Truth) -> None:
    assert {_look(thing).pool for things in truth.values() for thing in things} == {"sample"}


@pytest.mark.parametrize("root", ["myvlm", "YoLLaVA", SINGLE, MULTI])
def test_a_concept_always_looks_the_same_and_nothing_else_looks_like_it(truth: Truth, root: str) -> None:
    looks: dict[str, set[Instance]] = {}
    strangers = []
    for _, things in _positives(truth, root):
        for thing in things:
            if thing["concept"]:
                looks.setdefault(thing["concept"], set()).add(_look(thing))
            else:
                strangers.append(_look(thing))
    assert all(len(seen) == 1 for seen in looks.values())
    concepts = {next(iter(seen)) for seen in looks.values()}
    assert len(concepts) == len(looks)
    assert not concepts & set(strangers)
    # a plain thing shows little of its accent: without it, too, none may look like a concept
    plain = {(c.category, c.colour) for c in concepts if c.pattern == "plain"}
    assert not plain & {(s.category, s.colour) for s in strangers if s.pattern == "plain"}


@pytest.mark.parametrize(("root", "count"), [("myvlm", 8), ("YoLLaVA", 8), (SINGLE, 8), (MULTI, 6)])
def test_categories_have_look_alikes_among_the_concepts(truth: Truth, root: str, count: int) -> None:
    looks = {t["concept"]: _look(t) for _, things in _positives(truth, root) for t in things if t["concept"]}
    assert len(looks) == count
    categories = Counter(look.category for look in looks.values())
    assert len(categories) >= 3
    assert min(categories.values()) >= 2


def test_names_tell_the_truth(truth: Truth) -> None:
    for things in truth.values():
        for thing in things:
            if thing["concept"]:
                words = re.split(r"[ _-]", thing["concept"])
                assert set(thing["category"].split()) <= set(words)
                assert not set(words) & (set(COLOURS) - {thing["colour"]})
                assert not set(words) & (set(PATTERNS) - {thing["pattern"]})


def test_photos_show_the_concepts_of_their_folders(truth: Truth) -> None:
    for path, things in truth.items():
        shown = [thing["concept"] for thing in things if thing["concept"]]
        folder = path.split("/")[-2]
        if path.startswith(f"{MULTI}/test"):
            assert sorted(key.rpartition("-")[0] for key in shown) == sorted(folder.split("_and_"))
        elif "/Fake/" in path or "/Negative" in path:
            assert shown == []
        else:
            assert shown == [folder]


def test_negatives_are_what_their_split_says(truth: Truth) -> None:
    own = {t["concept"]: _look(t) for _, things in _positives(truth, f"{SINGLE}/train") for t in things}
    same_colour = []
    for path, things in truth.items():
        if not path.startswith(f"{SINGLE}/test"):
            continue
        split, folder = path.split("/")[-3:-1]
        kin = [_look(thing) for thing in things if thing["category"] == own[folder].category]
        if split == "Negative (Other)":
            assert kin == []
        elif split in ("Fake", "Negative (Hard)"):
            assert len(kin) == 1
            assert kin[0] not in own.values()
        if split == "Fake":
            same_colour.append(kin[0].colour == own[folder].colour)
    assert np.mean(same_colour) >= 0.9


def test_test_photos_often_show_other_things(truth: Truth) -> None:
    counts = [len(things) for path, things in truth.items() if "YoLLaVA/test" in path or "/Positive/" in path]
    assert 0.4 < np.mean(np.array(counts) > 1) < 0.95
    assert max(counts) == 4


# --- questions -----------------------------------------------------------------------------------------------------


def _questions(sample: Path, name: str) -> Iterator[tuple[str, str, dict]]:
    for key, entries in json.loads((sample / name).read_text(encoding="utf-8")).items():
        for photo, entry in entries.items():
            yield key, photo, entry


def _kind(text: str) -> str:
    """What a question is about, read from its words."""
    words = {
        "to the left": "order",
        "side of the picture": "side",
        "How many": "count",
        "colour": "colour",
        "pattern": "pattern",
        "kind of object": "category",
        "sort of thing": "category",
    }
    return next(kind for part, kind in words.items() if part in text)


def _true(kind: str, own: dict, things: list[dict], answer: str) -> bool:
    """Whether an answer is true of a thing, checked against what the photo shows."""
    if kind == "side":
        return answer == ("left" if own["box_xyxyn"][0] + own["box_xyxyn"][2] < 1 else "right")
    if kind == "count":
        return len([t for t in things if t["category"] == own["category"]]) == [
            "zero",
            "one",
            "two",
            "three",
            "four",
        ].index(answer)
    if kind == "colour":
        return answer in (own["colour"], own["accent"])
    return answer == own[kind]


def _check(entry: dict, options_name: str, own: dict, things: list[dict]) -> str:
    """The right answer is true and the other one false; returns the kind."""
    kind = _kind(entry["question"])
    if options_name in entry:
        assert set(entry) == {"question", options_name, "correct_answer"}
        assert list(entry[options_name]) == ["A", "B"]
        right = entry[options_name][entry["correct_answer"]]
        wrong = entry[options_name]["B" if entry["correct_answer"] == "A" else "A"]
        assert not _true(kind, own, things, wrong)
    else:
        assert set(entry) == {"question", "answer"}
        right = entry["answer"]
    assert _true(kind, own, things, right)
    if kind == "colour":
        assert right == own["colour"]
    return kind


def test_yollava_questions_are_true(sample: Path, truth: Truth) -> None:
    kinds = Counter()
    for key, photo, entry in _questions(sample, QUESTION_FILES[0]):
        assert photo.startswith(f"./yollava-data/test/{key}/")
        assert "<sks>" in entry["question"]
        assert "options" in entry
        things = truth[photo.replace("./yollava-data", "YoLLaVA")]
        (own,) = (thing for thing in things if thing["concept"] == key)
        kinds[_check(entry, "options", own, things)] += 1
    assert set(kinds) == set(QUESTION_TEMPLATES)
    assert min(kinds.values()) >= 3


def test_text_questions_are_true_and_answered_by_the_description(sample: Path, truth: Truth) -> None:
    descriptions = json.loads((sample / "YoLLaVA/descriptions.json").read_text(encoding="utf-8"))
    assert set(descriptions) == {folder.name for folder in (sample / "YoLLaVA/train").iterdir()}
    numbers: dict[str, list[str]] = {}
    for key, number, entry in _questions(sample, QUESTION_FILES[1]):
        numbers.setdefault(key, []).append(number)
        (own,) = truth[f"YoLLaVA/train/{key}/0.png"]
        assert re.search(r"\bsks\b", entry["question"])
        assert "<sks>" not in entry["question"]
        assert "option" in entry
        _check(entry, "option", own, [own])
        assert f" {entry['option'][entry['correct_answer']]}" in descriptions[key]
    assert all(found == ["0", "1", "2"] for found in numbers.values())
    assert len(numbers) == 8


def test_single_concept_questions_are_true(sample: Path, truth: Truth) -> None:
    is_open = []
    for key, photo, entry in _questions(sample, QUESTION_FILES[2]):
        things = truth[photo.replace("./", f"{SINGLE}/")]
        (own,) = (thing for thing in things if thing["concept"])
        assert own["concept"].rpartition("-")[0] == key
        assert "<sks>" in entry["question"]
        _check(entry, "options", own, things)
        is_open.append("answer" in entry)
    assert len(is_open) == 24
    assert 4 <= sum(is_open) <= 12


def test_multi_concept_questions_are_true(sample: Path, truth: Truth) -> None:
    is_open = []
    for key, photo, entry in _questions(sample, QUESTION_FILES[3]):
        names = key.split("_")
        assert photo.startswith(f"./test/{names[0]}_and_{names[1]}/")
        things = truth[photo.replace("./", f"{MULTI}/")]
        pair = {thing["concept"].rpartition("-")[0]: thing for thing in things if thing["concept"]}
        is_open.append("answer" in entry)
        if _kind(entry["question"]) == "order":
            middle = {name: pair[name]["box_xyxyn"][0] + pair[name]["box_xyxyn"][2] for name in names}
            right = entry["options"][entry["correct_answer"]]
            assert set(entry["options"].values()) == set(names)
            assert middle[right] == min(middle.values())
        else:
            (asked,) = (name for name in names if name in entry["question"])
            _check(entry, "options", pair[asked], things)
    assert len(is_open) == 12
    assert 1 <= sum(is_open) < 12


def _thing(category: str, centre: float, pattern: str = "plain", concept: str | None = None) -> dict:
    box = [centre - 0.1, 0.2, centre + 0.1, 0.8]
    looks = {"category": category, "colour": "red", "accent": "white", "pattern": pattern}
    return {"concept": concept, **looks, "box_xyxyn": box}


def test_what_a_photo_leaves_in_doubt_is_no_question() -> None:
    mug, kite = _thing("mug", 0.2), _thing("kite", 0.8)
    sides = {centre: right_answer("side", _thing("mug", centre), []) for centre in (0.2, 0.39, 0.41, 0.59, 0.61)}
    assert sides == {0.2: "left", 0.39: "left", 0.41: None, 0.59: None, 0.61: "right"}
    counts = [right_answer("count", mug, things) for things in ([mug], [mug, kite], [mug, kite, mug])]
    assert counts == [None, "one", "two"]


@pytest.mark.parametrize(("mugs", "wrong"), [(1, {"two"}), (2, {"one", "three"}), (3, {"two", "four"}), (4, {"three"})])
def test_a_wrong_count_is_next_to_the_right_one(mugs: int, wrong: set[str]) -> None:
    mug, kite = _thing("mug", 0.2), _thing("kite", 0.8)
    rng = np.random.default_rng(0)
    assert {wrong_answer(rng, "count", mug, [mug] * mugs + [kite]) for _ in range(40)} == wrong


@pytest.mark.parametrize(("pattern", "asked"), [("plain", True), ("dotted", True), ("striped", False)])
def test_nobody_is_asked_openly_for_the_colour_of_two(pattern: str, asked: bool) -> None:
    truth = {f"test/{n}.png": [_thing("mug", 0.2, pattern, "momo-mug")] for n in range(6)}
    written = _visual_questions(np.random.default_rng(0), truth, "test/", "./", str, open_share=1)
    kinds = {_kind(entry["question"]) for entry in written["momo-mug"].values() if "answer" in entry}
    assert kinds == {"pattern", "category", "side"} | ({"colour"} if asked else set())


@pytest.mark.parametrize(("second", "asked"), [(0.25, False), (0.35, True)])
def test_which_is_more_to_the_left_is_asked_of_two_that_are_apart(second: float, asked: bool) -> None:
    pair = [_thing("kite", 0.2, concept="Noras kite-kite"), _thing("mug", second, concept="Teos mug-mug")]
    truth = {f"test/Noras kite_and_Teos mug/{n}.png": pair for n in range(3)}
    written = _pair_questions(np.random.default_rng(0), truth, "test/", "./")["Noras kite_Teos mug"]
    first, *others = written.values()
    assert ("options" in first) is asked and not any("options" in entry for entry in others)
    if asked:
        assert first["options"][first["correct_answer"]] == "Noras kite"


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_letters_are_balanced(sample: Path, name: str) -> None:
    letters = Counter(e["correct_answer"] for _, _, e in _questions(sample, name) if "correct_answer" in e)
    assert abs(letters["A"] - letters["B"]) <= 1


def test_questions_keep_to_the_fixed_wordings(sample: Path) -> None:
    for name in QUESTION_FILES:
        for _, _, entry in _questions(sample, name):
            kind = _kind(entry["question"])
            if kind != "order":
                wordings, answers = QUESTION_TEMPLATES[kind]
                patterns = [re.escape(wording).replace(r"\{name\}", ".+") for wording in wordings]
                assert any(re.fullmatch(pattern, entry["question"]) for pattern in patterns)
                texts = (entry.get("options") or entry.get("option") or {"": entry.get("answer")}).values()
                assert set(texts) <= set(answers)


@pytest.mark.parametrize(
    ("dataset", "multi", "text", "count"),
    [
        ("yollava", False, False, 32),
        ("yollava", False, True, 24),
        ("this-is-my", False, False, 24),
        ("this-is-my", True, False, 12),
    ],
)
def test_the_reader_of_question_files_leaves_none_out(
    sample: Path, dataset: str, multi: bool, text: bool, count: int
) -> None:
    file = question_places.find_question_file(sample, dataset, multi, text)
    folders = question_places.photo_folders(file, sample, dataset, multi, "test")
    concepts = datasets.read_concepts(sample, dataset, multi)
    read = questions.read_questions(file, concepts, folders, dataset, text)
    assert len(read.items) == count
    assert read.left_out == ()
    assert all(len(item.question.concepts) == (2 if multi else 1) for item in read.items)


# --- determinism and the command -----------------------------------------------------------------------------------


def test_same_seed_same_tree(sample: Path, truth: Truth, tmp_path: Path) -> None:
    """All plans, questions and the truth are the same again; of the photos, which depend on these alone, a part."""
    plans = _plans(SEED)
    assert [photo.path for photo in plans] == list(truth)
    for photo in plans:
        assert sorted(str(key) for key, _ in photo.things) == sorted(str(t["concept"]) for t in truth[photo.path])
    for photo in plans[::12]:
        assert benchmark._draw_photo(photo, tmp_path, SEED) == truth[photo.path]
    benchmark.write_questions(tmp_path, truth, benchmark._rng(SEED, "questions"))
    again = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(again) == len(plans[::12]) + 5
    for file in again:
        assert _digest(file) == _digest(sample / file.relative_to(tmp_path)), file


def test_other_seed_other_concepts() -> None:
    first, second = benchmark.personal_concepts(1), benchmark.personal_concepts(2)
    assert list(first) == list(second)
    assert all(first[key] != second[key] for key in first)


@pytest.mark.parametrize("seed", range(3))
def test_any_seed_makes_good_plans(seed: int) -> None:
    concepts = benchmark.myvlm_concepts(seed)
    assert len(concepts) == 8
    for key, own in concepts.items():
        assert key.split("_")[0] in (own.colour, own.pattern)
    assert len(_plans(seed)) == 48 + 64 + 128 + 36


def test_things_look_the_same_unless_something_that_shows_tells_them_apart() -> None:
    plain, dotted = Instance("mug", "red", "white", "plain"), Instance("mug", "red", "white", "dotted")
    assert benchmark.same_looks(plain, replace(plain, accent="blue"))  # of which a plain thing shows little
    assert not benchmark.same_looks(dotted, replace(dotted, accent="blue"))
    for change in ({"category": "kite"}, {"colour": "blue"}, {"pattern": "striped"}):
        assert not benchmark.same_looks(plain, replace(plain, **change))


@pytest.mark.parametrize("seed", [0, 4])
def test_no_seed_shows_a_stranger_that_looks_like_a_concept(seed: int) -> None:
    things = [(photo.path.partition("/")[0], key, own) for photo in _plans(seed) for key, own in photo.things]
    for root in ("myvlm", "YoLLaVA", "This-is-My-Img"):
        named = {own for part, key, own in things if key and part == root}
        strangers = {own for part, key, own in things if not key and part == root}
        assert not [(one, other) for one in named for other in strangers if benchmark.same_looks(one, other)]


def test_command_without_a_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_run_takes_the_scripts_own_options_and_stops_where_one_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parsers = {
        "extraction": extraction.build_parser(),
        "detection": detection.build_parser(),
        "vqa": vqa.build_parser(),
    }
    done = []

    def note(script: str, options: list[str]) -> int:
        args = parsers[script].parse_args(options)
        assert (args.models, args.data_folder, args.n_training_views) == ("sample", tmp_path / "datasets", 3)
        done.append((script, args.dataset, args.multi_concept))
        return 3 if (script, args.multi_concept) == failing else 0

    monkeypatch.setattr(run, "run_command", note)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    failing: tuple[str, bool] | None = None
    (tmp_path / "datasets").mkdir()
    assert run.main(["--out", str(tmp_path)]) == 0
    assert "of them the questions" in capsys.readouterr().out
    asked = [("vqa", "yollava", False)] * 2 + [("vqa", "this-is-my", False), ("vqa", "this-is-my", True)]
    assert done[-4:] == asked and "vqa" not in {script for script, *_ in done[:-4]}
    for dataset, multi in (("yollava", False), ("myvlm", False), ("this-is-my", False), ("this-is-my", True)):
        own = [script for script, *of in done[:-4] if of == [dataset, multi]]
        detections = 4 if (dataset, multi) == ("this-is-my", False) else 1  # one for each of its test splits
        assert own == ["extraction"] + ["detection"] * detections
    failing = ("detection", True)
    done.clear()
    assert run.main(["--out", str(tmp_path)]) == 3
    assert done[-1] == ("detection", "this-is-my", True)


def test_two_samples_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"myvlm/data/red_thing/red_thing_1.jpg": []}
    (tmp_path / "sample.json").write_text(json.dumps(other))
    assert main(["--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds a sample of another --seed or version" in capsys.readouterr().err
    (tmp_path / "sample.json").write_text("{")
    assert main(["--out", str(tmp_path)]) == 2
    assert "sample.json is no list" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


@pytest.mark.parametrize("folder", ["myvlm", "YoLLaVA", "This-is-My-Img"])
def test_photos_of_no_sample_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    own = tmp_path / folder / "train/momo-mug/0.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my photo")
    assert main(["--out", str(tmp_path)]) == 2
    assert f"{tmp_path / folder} is there, and no sample.json" in capsys.readouterr().err
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [own] and own.read_bytes() == b"my photo"


def test_ctrl_c_stops_quietly_and_the_same_command_writes_the_whole(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "myvlm").mkdir()  # an empty folder is in nobody's way
    command = [sys.executable, "-m", "pekit.sample", "--out", str(tmp_path)]
    environment = script_environment()
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, env=environment) as process:
        end = time.monotonic() + 100
        while not (tmp_path / "sample.json").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # the workers have begun to import
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, b"stopped: the same command writes the whole\n")
    assert not list(tmp_path.rglob("*qa.json"))
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, env=environment)
    assert files_of(tmp_path) == files_of(sample)


def test_the_run_without_a_sample_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--out", str(tmp_path)]) == 2
    assert f"python -m pekit.sample --out {tmp_path}/datasets" in capsys.readouterr().err


def test_a_trained_model_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lvlm/model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"trained")
    assert main(["--models", str(tmp_path)]) == 2
    assert f"{tmp_path / 'lvlm'} holds a model: name another folder" in capsys.readouterr().err
    assert file.read_bytes() == b"trained" and [path.name for path in tmp_path.iterdir()] == ["lvlm"]


@pytest.mark.parametrize("option", ["--out", "--models"])
def test_a_folder_without_a_name_is_refused(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main([option, ""])
    assert refused.value.code == 2 and "it is empty" in capsys.readouterr().err


def test_stopped_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pekit.sample.benchmark.write_sample", stop)
    assert main(["--out", str(tmp_path)]) == 130
    assert "the same command" in capsys.readouterr().err
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr("pekit.sample.run.run_command", stop)
    assert run.main(["--out", str(tmp_path)]) == 130
    monkeypatch.setattr("pekit.sample.evaluate.grounding.evaluate", stop)
    assert evaluating.main(["--only", "grounding"]) == 130


def test_command_says_when_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["--out", str(tmp_path / "taken/below")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "taken" in printed
    with pytest.raises(SystemExit) as refused:
        main(["--out", str(tmp_path / "taken")])
    assert refused.value.code == 2 and "taken' is a file: name a folder" in capsys.readouterr().err


def test_command_builds_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pekit.sample import models

    built = []
    monkeypatch.setattr(models, "write_models", lambda out, seed: built.append((out, seed)))
    assert main(["--models", str(tmp_path), "--seed", "7"]) == 0
    assert built == [(tmp_path, 7)]
    assert str(tmp_path) in capsys.readouterr().out
