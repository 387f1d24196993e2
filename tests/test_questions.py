"""Question files as they lie on people's disks: names, photo paths, keys, options."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from vqa_fixtures import write_json

from pekit.names import concept_of_folder, published
from pekit.question_places import (
    find_descriptions,
    find_photo,
    find_question_file,
    known_concepts,
    nameable_concepts,
    photo_folders,
)
from pekit.questions import concepts_of_key, read_descriptions, read_questions
from pekit.records import Concept, UserError

YOLLAVA = tuple(concept_of_folder("yollava", name.rpartition("-")[0]) for name in published("yollava"))
MULTI = tuple(concept_of_folder("this-is-my", name) for name in published("this-is-my", True))


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"photo")
    return path


def write_visual_qa(folder: Path, file: Path, items: int = 170) -> Path:
    """The published form: paths begin with the name the folder had, always two options."""
    content: dict = {}
    for n in range(items):
        concept = YOLLAVA[n % 34].key
        touch(folder / "test" / concept / f"{n // 34}.png")
        content.setdefault(concept, {})[f"./yollava-data/test/{concept}/{n // 34}.png"] = {
            "question": f"Question {n} about <sks>?",
            "options": {"A": "First", "B": "Second"},
            "correct_answer": "AB"[n % 2],
        }
    return write_json(file, content)


@pytest.mark.parametrize("folder_name", ["yollava-data", "YoLLaVA"])
@pytest.mark.parametrize("inside", [False, True], ids=["parent as data folder", "the folder itself as data folder"])
def test_visual_qa_of_170_items(tmp_path: Path, folder_name: str, inside: bool) -> None:
    root = tmp_path / folder_name
    file = write_visual_qa(root, root / "yollava-visual-qa.json")
    data = root if inside else tmp_path
    assert find_question_file(data, "yollava", False, False) == file
    folders = photo_folders(file, data, "yollava", False, "test")
    found = read_questions(file, YOLLAVA, folders, "yollava", text_only=False)
    assert len(found.items) == 170 and found.left_out == ()
    by_text = {item.question.text: item for item in found.items}
    item = by_text["Question 36 about <sks>?"]  # concept 2, photo 1
    assert item.subject == "toodles-galore" and item.question.concepts == ("toodles-galore",)
    assert item.question.photo == root / "test/toodles-galore/1.png"
    assert item.question.photo_name == "./yollava-data/test/toodles-galore/1.png"
    assert item.question.options == {"A": "First", "B": "Second"} and item.question.answer == "A"


def test_file_beside_its_folder(tmp_path: Path) -> None:
    file = write_visual_qa(tmp_path / "yollava-data", tmp_path / "yollava-visual-qa.json", 4)
    assert find_question_file(tmp_path, "yollava", False, False) == file
    folders = photo_folders(file, tmp_path, "yollava", False, "test")
    assert len(read_questions(file, YOLLAVA, folders, "yollava", False).items) == 4


def test_file_in_the_folder_that_the_published_command_names(tmp_path: Path) -> None:
    write_visual_qa(tmp_path / "YoLLaVA", tmp_path / "elsewhere.json", 4)
    (tmp_path / "yollava-data").mkdir()
    with pytest.raises(UserError, match=r"yollava-visual-qa\.json"):  # the places are named
        find_question_file(tmp_path, "yollava", False, False)
    file = (tmp_path / "elsewhere.json").rename(tmp_path / "yollava-data/yollava-visual-qa.json")
    assert find_question_file(tmp_path, "yollava", False, False) == file


def test_text_only_file_of_400_items(tmp_path: Path) -> None:
    content = {
        name: {
            str(n): {"question": f"Is sks number {n}?", "option": {"A": "yes", "B": "no"}, "correct_answer": "B"}
            for n in range(10)
        }
        for name in (concept.key for concept in YOLLAVA)
    }
    file = write_json(tmp_path / "text-only.json", content)
    found = read_questions(file, YOLLAVA, (), "yollava", text_only=True, descriptions={"pig-cup": "A pink cup."})
    assert len(found.items) == 400 and not found.left_out
    first, other = found.items[0].question, found.items[10].question
    assert first.photo is None and first.context == "A pink cup." and other.context == ""
    assert first.text == "Is sks number 0?" and first.options == {"A": "yes", "B": "no"} and first.answer == "B"


def test_multi_concept_file_with_missing_photos(tmp_path: Path) -> None:
    root = tmp_path / "This-is-My-Img/Multi-concept"
    here = touch(root / "test/Casey_and_Caseys boosted board/0.png")
    content = {
        "Casey_Caseys boosted board": {
            "./test/Casey_and_Caseys boosted board/0.png": {
                "question": "What is \u201c<sks1>\u201d doing?",
                "correct_answer": "Riding",
                "gpt_answer": "He rides",
            },
            "./test/Casey_and_Caseys boosted board/lost.png": {"question": "Where?", "answer": "Outside"},
        },
        "Nobody_Nothing": {"./test/Casey_and_Caseys boosted board/0.png": {"question": "Who?", "answer": "?"}},
    }
    file = write_json(root / "VQA/questions.json", content)
    folders = photo_folders(file, tmp_path, "this-is-my", True, "test")
    found = read_questions(file, MULTI, folders, "this-is-my", False, frozenset(concept.key for concept in MULTI))
    assert [item.question.photo for item in found.items] == [here]
    only = found.items[0]
    assert only.question.concepts == ("Casey-man", "Caseys boosted board-skateboard")
    assert only.question.answer == "Riding" and only.gpt_answer == "He rides" and only.question.options == {}
    assert [(entry.photo, entry.reason) for entry in found.left_out] == [
        ("./test/Casey_and_Caseys boosted board/lost.png", "the photo is missing"),
        ("./test/Casey_and_Caseys boosted board/0.png", "no views of this concept are stored"),
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("Casey", ["Casey-man"]),
        ("Caseys boosted board", ["Caseys boosted board-skateboard"]),
        ("Casey_Caseys boosted board", ["Casey-man", "Caseys boosted board-skateboard"]),
        ("Casey_and_Caseys son", ["Casey-man", "Caseys son-man"]),
        ("Alex\u2019s hat_Alex", ["Alexs hat-hat", "Alex-woman"]),
        ("Alexs_hat", ["Alexs hat-hat"]),
        ("Alexs hat_Alex_Alexs everyday bag", ["Alexs hat-hat", "Alex-woman", "Alexs everyday bag-bag"]),
        ("Casey_Unknown", []),
        ("Unknown", []),
        ("", []),
    ],
)
def test_keys(key: str, expected: list[str]) -> None:
    assert [concept.key for concept in concepts_of_key(key, MULTI)] == expected


def test_own_names_with_underscores() -> None:
    own = [concept_of_folder("yollava", name) for name in ("my_cup", "my_dog", "my")]
    assert [concept.key for concept in concepts_of_key("my_cup_my_dog", own)] == ["my_cup", "my_dog"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "./yollava-data/../../secret.png",
        "{tmp}/secret.png",
        "a\\..\\..\\secret.png",
    ],
)
def test_photos_may_not_leave_their_folders(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "secret.png")
    folder = tmp_path / "yollava-data"
    inside = touch(folder / "a/0.png")
    assert find_photo(name.format(tmp=tmp_path), [folder], "yollava") is None
    assert find_photo("a\\..\\a\\0.png", [folder], "yollava") == inside
    assert find_photo(str(inside), [folder], "yollava") == inside
    assert find_photo(str(inside), [tmp_path / "other", folder], "yollava") == inside


def test_folders_named_by_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "YoLLaVA"
    photo = touch(root / "test/bo/0.png")
    file = write_json(tmp_path / "yollava-visual-qa.json", {})
    for where, data in (("YoLLaVA", Path()), ("YoLLaVA/test", Path("..")), ("YoLLaVA", Path("..")), ("YoLLaVA", root)):
        monkeypatch.chdir(tmp_path / where)
        found = find_question_file(data, "yollava", False, False)
        assert found.samefile(file)
        for named in (found, Path(os.path.relpath(file))):
            folders = photo_folders(named, data, "yollava", False, "test")
            for name in ("test/bo/0.png", "./yollava-data/test/bo/0.png", "bo/0.png", str(photo)):
                assert find_photo(name, folders, "yollava") == photo, (where, data, named, name)
            assert find_photo("../../yollava-visual-qa.json", folders, "yollava") is None


def test_whole_paths_may_lead_through_links(tmp_path: Path) -> None:
    photo = touch(tmp_path / "disk/YoLLaVA/test/bo/0.png")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    folders = photo_folders(tmp_path / "elsewhere/q.json", tmp_path / "link", "yollava", False, "test")
    assert find_photo(str(photo), folders, "yollava") == photo
    assert find_photo(str(touch(tmp_path / "other/0.png")), folders, "yollava") is None


def test_photos_relative_to_the_split(tmp_path: Path) -> None:
    photo = touch(tmp_path / "YoLLaVA/validation/bo/0.png")
    touch(tmp_path / "YoLLaVA/test/bo/1.png")
    file = write_json(tmp_path / "elsewhere/questions.json", {"bo": {"bo/0.png": {"question": "?", "answer": "!"}}})
    folders = photo_folders(file, tmp_path, "yollava", False, "validation")
    assert find_photo("bo/0.png", folders, "yollava") == photo
    assert find_photo("bo/0.png", photo_folders(file, tmp_path, "yollava", False, "test"), "yollava") is None


def test_file_outside_of_any_data_set_looks_beside_itself_only(tmp_path: Path) -> None:
    touch(tmp_path / "above.png")
    beside = touch(tmp_path / "mine/beside.png")
    data = tmp_path / "data"
    data.mkdir()
    folders = photo_folders(tmp_path / "mine/questions.json", data, "yollava", False, "test")
    assert find_photo("beside.png", folders, "yollava") == beside
    assert find_photo("above.png", folders, "yollava") is None


@pytest.mark.parametrize("above", ["THIS-IS-MY-IMG", "my data"])
def test_photos_beside_the_questions_folder_need_no_references(tmp_path: Path, above: str) -> None:
    """The data set's folder is known by its name, or by --data_folder."""
    top = tmp_path / above
    photo = touch(top / "photos/bo/0.png")
    touch(tmp_path / "outside.png")
    data = top if above == "my data" else tmp_path / "empty"
    data.mkdir(exist_ok=True)
    folders = photo_folders(top / "questions/new/q.json", data, "this-is-my", False, "test")
    assert find_photo("photos/bo/0.png", folders, "this-is-my") == photo
    assert find_photo("outside.png", folders, "this-is-my") is None


@pytest.mark.parametrize("root", ["This-is-My-Img", "this-is-my", "THIS-IS-MY-IMG", "mine"])
def test_a_path_may_begin_with_any_name_of_the_data_sets_folder(tmp_path: Path, root: str) -> None:
    photo = touch(tmp_path / "Mine/test/bo/0.png")
    assert find_photo(f"./{root}/test/bo/0.png", [tmp_path / "Mine"], "this-is-my") == photo
    assert find_photo("others/test/bo/0.png", [tmp_path / "Mine"], "this-is-my") is None


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        ({"options": {"A": "red", "B": "blue"}, "correct_answer": "B"}, "B"),
        ({"options": {"A": "red", "B": "blue"}, "correct_answer": "b. blue"}, "B"),
        ({"options": {"A": "red", "B": "blue"}, "correct_answer": "Blue"}, "B"),
        ({"options": {"A": "almost", "B": "blue"}, "answer": "blue"}, "B"),
        ({"option": {"A": "Yes", "B": "No"}, "answer": "A"}, "A"),
        ({"options": ["red", "blue"], "answer": "blue"}, "B"),
        ({"options": {}, "answer": "Blue"}, "Blue"),
        ({"options": {"A": "blue", "B": "red"}, "answer": "Blue."}, "A"),
        ({"options": {"A": "Alex", "B": "Alex's hat"}, "answer": "Alex\u2019s hat"}, "B"),
        ({"options": {"A": "dog", "B": "the cat"}, "answer": "a cat"}, "B"),
        ({"options": {"A": "B", "B": "A"}, "answer": "B"}, "B"),
        ({"options": {"A": "a", "B": "the"}, "answer": "The."}, "B"),
        ({"options": {"A": "x", "B": "b."}, "answer": "a) x"}, "A"),
        ({"options": {"A": "dog", "B": "cat"}, "answer": "A : hound"}, "A"),
        ({"options": {"A": "dog", "B": "cat"}, "answer": "A cat"}, "B"),
        ({"options": {"A": "dog", "B": "cat"}, "answer": "B cat"}, "B"),
        ({"options": {"A": "dog", "B": "cat"}, "answer": "(b)"}, "B"),
        ({"options": {"A": "G. Best", "B": "A. Lincoln"}, "answer": "A. Lincoln"}, "B"),
        ({"options": {"1": "2", "2": "1"}, "answer": "1"}, "1"),
        ({"options": {"1": "dog", "2": "cat"}, "answer": 2}, "2"),
        ({"options": {str(n): f"dog {n}" for n in range(1, 13)}, "answer": "12. dog 12"}, "12"),
        ({"options": [f"dog {n}" for n in range(1, 13)], "answer": "dog 12"}, "L"),
        ({"options": [f"dog {n}" for n in range(1, 27)], "answer": "dog 26"}, "Z"),
        ({"answer": 3}, "3"),
        ({}, ""),
        ({"answer": None}, ""),
        ({"options": {"A)": "dog", "B.": "cat"}, "answer": "B."}, "B"),
        ({"options": ["A. dog", "B) cat"], "answer": "cat"}, "B"),
        ({"options": {"(A)": "dog", "(B)": "cat"}, "answer": "(B)"}, "B"),
        ({"options": {"A": "5", "B": "-5"}, "answer": "-5."}, "B"),
        ({"options": {"A": "+", "B": "-"}, "answer": "-"}, "B"),
    ],
)
def test_answers_of_options(tmp_path: Path, entry: dict, answer: str) -> None:
    file = write_json(tmp_path / "q.json", {"bo": {"0": {"question": "?", **entry}}})
    assert read_questions(file, YOLLAVA, (), "yollava", True).items[0].question.answer == answer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["A. dog", "B) the cat"], {"A": "dog", "B": "the cat"}),
        ({"a": "A: dog", "b": "b. cat"}, {"a": "dog", "b": "cat"}),
        (["A. dog", "cat"], {"A": "A. dog", "B": "cat"}),
        (["A.", "B."], {"A": "A.", "B": "B."}),
        (["Ada", "Bo"], {"A": "Ada", "B": "Bo"}),
    ],
)
def test_letters_written_before_options_are_not_doubled(tmp_path: Path, options: object, expected: dict) -> None:
    file = write_json(tmp_path / "q.json", {"bo": {"0": {"question": "?", "options": options, "answer": "A"}}})
    assert read_questions(file, YOLLAVA, (), "yollava", True).items[0].question.options == expected


def test_the_digest_is_of_the_descriptions_too(tmp_path: Path) -> None:
    file = write_json(tmp_path / "q.json", {"bo": {"0": {"question": "?", "answer": "A"}}})
    one, same, other, none = (
        read_questions(file, YOLLAVA, (), "yollava", True, descriptions=texts).digest
        for texts in ({"bo": "Brown."}, {"bo": "Brown.", "lamp": "Tall."}, {"bo": "Black."}, None)
    )
    assert one == same and len({one, other, none}) == 3


def test_text_only_questions_that_name_photos_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_json(tmp_path / "q.json", {"bo": {"test/bo/0.PNG": {"question": "?", "answer": "A"}}})
    read_questions(file, YOLLAVA, (), "yollava", True)
    assert "test/bo/0.PNG, which tqa does not show" in caplog.text
    caplog.clear()
    read_questions(
        write_json(tmp_path / "t.json", {"bo": {"0": {"question": "?", "answer": "A"}}}), YOLLAVA, (), "yollava", True
    )
    assert not caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", ["q.json"]),
        ("{", ["q.json", "JSON"]),
        ('{"bo": ["?"]}', ["q.json", "'bo'"]),
        ('{"bo": {"0": "?"}}', ["'bo'", "'0'"]),
        ('{"bo": {"0": {"answer": "A"}}}', ["'bo'", "'0'", "question"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "B": "y"}}}}', ["'bo'", "no correct_answer"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "B": "y"}, "answer": "C"}}}', ["'C'"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "B": "y"}, "answer": "both"}}}', ["'both'"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "red", "B": "green"}, "answer": "Blue"}}}', ["'Blue'"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "a cat", "B": "the cat"}, "answer": "Cat"}}}', ["'Cat'"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "B": "y"}, "answer": ""}}}', ["not one of its options"]),
        ('{"bo": {"0": {"question": null, "answer": "A"}}}', ["'bo'", "'0'", "question"]),
        ('{"bo": {"0": {"question": "?", "options": "A or B", "answer": "A"}}}', ["options"]),
        ('{"bo": {"0": {"question": "?", "answer": ["red", "blue"]}}}', ["'bo'", "correct_answer", "text"]),
        ('{"bo": {"0": {"question": "?", "answer": true}}}', ["'bo'", "correct_answer", "text"]),
        ('{"bo": {"0": {"question": "?", "answer": " "}}}', ["'bo'", "empty correct_answer"]),
        ('{"bo": {"0": {"question": ["a"], "answer": "A"}}}', ["'bo'", "question", "text"]),
        ('{"bo": {"0": {"question": NaN, "answer": "A"}}}', ["'bo'", "question", "text"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": null, "B": "x"}, "answer": "A"}}}', ["options"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": ["x"], "B": "x"}, "answer": "A"}}}', ["options"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "A.": "y"}, "answer": "A"}}}', ["same letter"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x", "a": "y"}, "answer": "A"}}}', ["same letter"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "x"}, "answer": "A"}}}', ["one option"]),
        ('{"bo": {"0": {"question": "?", "options": {"A": "yes", "B": "no"}, "answer": "A. no"}}}', ["'A. no'"]),
        ("[" * 100000, ["q.json", "JSON"]),
        (json.dumps({"bo": {"0": {"question": "?", "options": ["x"] * 27, "answer": "A"}}}), ["options"]),
        ('{"bo": {"0": {"question": "\\ud83d?", "answer": "A"}}}', ["q.json", "surrogates"]),
        ("{}", ["holds no question"]),
    ],
)
def test_faulty_files_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "q.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_questions(file, YOLLAVA, (), "yollava", True)
    for word in words:
        assert word in str(caught.value)


def test_missing_file_and_no_askable_question(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--json_path"):
        read_questions(tmp_path / "none.json", YOLLAVA, (), "yollava", True)
    file = write_json(tmp_path / "q.json", {"bo": {"lost.png": {"question": "?", "answer": "!"}}})
    with pytest.raises(UserError, match=r"lost\.png: the photo is missing"):
        read_questions(file, YOLLAVA, (tmp_path,), "yollava", False)
    file = write_json(tmp_path / "own.json", {"my-mug": {"0.png": {"question": "?", "answer": "!"}}})
    words = r"'my-mug', 0\.png: no views of this concept are stored\): there are those of bo; run extraction\.py first"
    with pytest.raises(UserError, match=words):
        read_questions(file, YOLLAVA, (tmp_path,), "yollava", False, frozenset(["bo"]))
    file = write_json(tmp_path / "long.json", {"bo": {"0" * 5000: {"question": "?", "answer": "!"}}})
    with pytest.raises(UserError, match="the photo is missing"):
        read_questions(file, YOLLAVA, (tmp_path,), "yollava", False)


def test_byte_order_mark_and_lists_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(
        '\ufeff{"bo": {"0": [{"question": "1", "answer": "a"}, {"question": "2", "answer": "b"}]}}', "utf-8"
    )
    assert [item.question.text for item in read_questions(file, YOLLAVA, (), "yollava", True).items] == ["1", "2"]


def test_usual_places(tmp_path: Path) -> None:
    touch(tmp_path / "This-is-My-Img/Single-concept/train/a-b/0.png")
    touch(tmp_path / "This-is-My-Img/Multi-concept/train/a-b/0.png")
    with pytest.raises(UserError, match="--json_path"):
        find_question_file(tmp_path, "this-is-my", True, False)
    file = write_json(tmp_path / "This-is-My-Img/Multi-concept/VQA/one.json", {})
    single = write_json(tmp_path / "This-is-My-Img/Single-concept/VQA/single.json", {})
    assert find_question_file(tmp_path, "this-is-my", True, False) == file
    assert find_question_file(tmp_path, "this-is-my", False, False) == single
    other = write_json(file.with_name("two.json"), {})
    with pytest.raises(UserError) as caught:
        find_question_file(tmp_path, "this-is-my", True, False)
    assert str(file) in str(caught.value) and str(other) in str(caught.value)


@pytest.mark.parametrize("part", ["Single-concept", "Multi-concept"])
def test_descriptions_beside_the_questions_are_no_questions(tmp_path: Path, part: str) -> None:
    touch(tmp_path / f"This-is-My-Img/{part}/train/a-b/0.png")
    file = write_json(tmp_path / f"This-is-My-Img/{part}/TQA/questions.json", {})
    described = write_json(file.with_name("my_descriptions.json"), {})
    assert find_question_file(tmp_path, "this-is-my", part == "Multi-concept", True) == file
    assert find_descriptions(file) == described


def test_known_concepts_are_those_with_views(tmp_path: Path) -> None:
    assert [c.key for c in known_concepts(tmp_path / "none", "yollava", False)][:2] == ["pig-cup", "thap-cham"]
    touch(tmp_path / "Alexs hat-hat/0_0.pt")
    touch(tmp_path / "gsam/Zak-man/0_0.pt")  # views of another kind lie in a folder among the concepts
    assert [(c.key, c.name) for c in known_concepts(tmp_path, "this-is-my", False)] == [("Alexs hat-hat", "Alex's hat")]


def test_concepts_that_can_be_named_without_views(tmp_path: Path) -> None:
    touch(tmp_path / "YoLLaVA/train/my_mug/0.png")
    touch(tmp_path / "YoLLaVA/train/pig-cup/0.png")
    stored = [concept_of_folder("yollava", "bo")]
    found = nameable_concepts(stored, tmp_path, "yollava", False)
    keys = [concept.key for concept in found]
    assert keys[:3] == ["bo", "my_mug", "pig-cup"] and len(keys) == len(set(keys)) == 41  # the 40 published ones
    assert [concept.name for concept in concepts_of_key("my_mug_thap-cham", found)] == ["my mug", "thap-cham"]
    people = nameable_concepts([], tmp_path / "nowhere", "this-is-my", True)
    assert [concept.key for concept in people] == list(published("this-is-my", True))


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_accented_letters_may_be_one_sign_or_two(tmp_path: Path, written: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[written]
    on_disk, in_file = (unicodedata.normalize(form, "caf\u00e9") for form in (other, written))
    photo = touch(tmp_path / f"{on_disk}/0.png")
    assert find_photo(f"{in_file}/0.png", [tmp_path], "yollava") == photo
    concept = concept_of_folder("yollava", on_disk)
    assert concepts_of_key(in_file, [concept]) == (concept,)
    assert find_photo("cafe/0.png", [tmp_path], "yollava") is None


@pytest.mark.parametrize(
    "content",
    [{"bo": "A brown dog."}, {"concept_dict": {"<bo>": {"name": "bo", "info": "A brown dog."}}}],
    ids=["plain", "database"],
)
def test_descriptions(tmp_path: Path, content: dict) -> None:
    file = write_json(tmp_path / "my-descriptions.json", content)
    assert read_descriptions(file) == {"bo": "A brown dog."}
    assert find_descriptions(tmp_path / "questions.json") == file
    write_json(tmp_path / "other-descriptions.json", content)
    with pytest.raises(UserError, match=r"several files of descriptions.*--descriptions"):
        find_descriptions(tmp_path / "questions.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"concept_dict": ["bo"]}, ["'concept_dict'"]),
        ({"concept_dict": None}, ["'concept_dict'"]),
        ({"concept_dict": {"<bo>": {"info": ["brown"]}}}, ["'bo'"]),
        ({"bo": None}, ["'bo'"]),
        ({"bo": 3}, ["'bo'"]),
        (["bo"], []),
    ],
)
def test_faulty_descriptions_are_named(tmp_path: Path, content: object, words: list[str]) -> None:
    file = write_json(tmp_path / "my-descriptions.json", content)
    with pytest.raises(UserError) as caught:
        read_descriptions(file)
    for word in (str(file), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("stored", [False, True])
def test_only_this_is_my_has_a_multi_concept_part(tmp_path: Path, stored: bool) -> None:
    if stored:
        touch(tmp_path / "bo/0_0.pt")
    with pytest.raises(UserError, match="--multi_concept goes with --dataset this-is-my; yollava has no"):
        known_concepts(tmp_path, "yollava", True)


def test_a_key_that_stands_twice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "test/pig-cup/0.png")
    key = "./yollava-data/test/pig-cup/0.png"
    one, two = (
        f'"{key}": {{"question": "{q}?", "options": {{"A": "x", "B": "y"}}, "correct_answer": "A"}}' for q in "QR"
    )
    file = tmp_path / "questions.json"
    file.write_text(f'{{"pig-cup": {{{one}, {two}}}}}')
    found = read_questions(file, YOLLAVA, photo_folders(file, tmp_path, "yollava", False, "test"), "yollava", False)
    assert [item.question.text for item in found.items] == ["R?"]
    assert f"'{key}' stands 2 times" in caplog.text and str(file) in caplog.text


def test_keys_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"question": "Is it red?", "choices": {"A": "yes", "B": "no"}, "correct_answer": "A"}
    file = write_json(tmp_path / "q.json", {"Casey": {"0": entry, "1": entry}})
    read_questions(file, MULTI, (), "this-is-my", True)
    assert "keys of questions that are not read: 'choices' (2 times)" in caplog.text


def test_a_folder_and_another_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_questions(tmp_path, MULTI, (), "this-is-my", True)
    (tmp_path / "q.json").write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match="is not in UTF-8"):
        read_questions(tmp_path / "q.json", MULTI, (), "this-is-my", True)


def own_concepts(*names: str) -> tuple[Concept, ...]:
    return tuple(concept_of_folder("yollava", name) for name in names)


def test_a_question_is_about_its_own_concept_or_left_out(tmp_path: Path) -> None:
    """Views are there of "rex" alone: a question about "rex-toy" is none about "rex"."""
    views = tmp_path / "views/rex"
    views.mkdir(parents=True)
    (views / "0_0.pt").touch()
    for name in ("rex", "rex-toy"):
        touch(tmp_path / f"YoLLaVA/train/{name}/0.png")
    stored = known_concepts(tmp_path / "views", "yollava", False)
    known = nameable_concepts(stored, tmp_path, "yollava", False)
    assert {"rex", "rex-toy", "pig-cup"} <= {concept.key for concept in known}
    file = write_json(tmp_path / "q.json", {n: {"0": {"question": "?", "answer": "!"}} for n in ("rex-toy", "rex")})
    found = read_questions(file, known, (), "yollava", True, frozenset(concept.key for concept in stored))
    assert [item.question.concepts for item in found.items] == [("rex",)]
    assert [(entry.subject, entry.reason) for entry in found.left_out] == [
        ("rex-toy", "no views of this concept are stored")
    ]
    unaided = read_questions(file, known, (), "yollava", True)
    assert [item.question.concepts for item in unaided.items] == [("rex-toy",), ("rex",)]


def test_a_published_concept_in_a_folder_of_another_of_its_names_is_there_once(tmp_path: Path) -> None:
    for stored, dataset, key in (
        (own_concepts("pig-cup-cup"), "yollava", "pig-cup"),
        ((concept_of_folder("this-is-my", "Alexs hat"),), "this-is-my", "Alexs hat-hat"),
        ((concept_of_folder("this-is-my", "Alexs hat-cap"),), "this-is-my", "Alexs hat"),
        (own_concepts("thao-woman"), "yollava", "thao"),
    ):
        known = nameable_concepts(stored, tmp_path, dataset, False)
        assert [concept.key for concept in concepts_of_key(key, known)] == [stored[0].key]
        assert len(known) == len(published(dataset))


def test_what_a_key_may_mean_besides_does_not_stop_the_run(tmp_path: Path) -> None:
    known = own_concepts("cup-blue", "cup-red")
    file = write_json(tmp_path / "q.json", {"cup-red": {"0": {"question": "?", "answer": "!"}}})
    assert read_questions(file, known, (), "yollava", True).items[0].question.concepts == ("cup-red",)
    assert concepts_of_key("cup_x", known) == ()
    file = write_json(tmp_path / "cup.json", {"cup": {"0": {"question": "?", "answer": "!"}}})
    with pytest.raises(UserError, match=r"cup\.json: .*cup-blue or cup-red"):
        read_questions(file, known, (), "yollava", True)


def test_names_in_angle_brackets(tmp_path: Path) -> None:
    texts = read_descriptions(write_json(tmp_path / "d.json", {"concept_dict": {"<bo>": {"info": "<bo> is brown."}}}))
    file = write_json(tmp_path / "q.json", {"<bo>": {"0": {"question": "?", "answer": "!"}}})
    question = read_questions(file, YOLLAVA, (), "yollava", True, descriptions=texts).items[0].question
    assert question.concepts == ("bo",) and question.context == "bo is brown."
    question = read_questions(file, (), (), "yollava", True, descriptions=texts).items[0].question  # bo is not known
    assert question.concepts == ("bo",) and question.context == "bo is brown."
