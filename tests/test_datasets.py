"""The benchmarks' folders: concepts, order, splits, which photo shows what, and the traps that lie in them."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import broken, picture, write_multi, write_photos, write_this_is_my, write_yollava

from pekit import datasets
from pekit.names import published
from pekit.photos import open_image
from pekit.records import UserError


class TestConcepts:
    def test_published_order_with_missing_and_extra_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # fourth, first and second of the published list, which has pig-cup-cup, thap-cham-temple, denisdang-face
        write_yollava(tmp_path, ["denisdang", "my-own-mug", "pig-cup", "thap-cham"], train=1, test=1)
        with caplog.at_level(logging.WARNING):
            concepts = datasets.read_concepts(tmp_path, "yollava")
        assert [concept.key for concept in concepts] == ["pig-cup", "thap-cham", "denisdang", "my-own-mug"]
        warning = " ".join(record.getMessage() for record in caplog.records)
        assert "40" in warning and "my-own-mug" in warning and "toodles-galore" in warning
        assert "pig-cup" not in warning.split("not in the published")[0].split("missing")[1]

    def test_all_published_ones_give_no_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in reversed(published("myvlm")):
            write_photos(tmp_path / "myvlm/data" / name.replace(" ", "_"), ["a.jpg"])
        with caplog.at_level(logging.WARNING):
            concepts = datasets.read_concepts(tmp_path, "myvlm")
        assert [concept.key.replace("_", " ") for concept in concepts] == list(published("myvlm"))
        assert not caplog.records

    def test_own_concepts_come_in_natural_order(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["toy-10", "toy-9", "ball"], train=1, test=1)
        assert [concept.key for concept in datasets.read_concepts(tmp_path, "yollava")] == ["ball", "toy-9", "toy-10"]

    def test_folders_that_are_no_concepts(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_yollava(tmp_path, ["mug"], train=2, test=1)
        train = tmp_path / "YoLLaVA/train"
        write_photos(train / "mug/negative_example", ["1.png", "2.png"])
        write_photos(train / "negative_example", ["1.png"])
        (train / "mug/scores.json").write_text("{}")
        (train / "mug/.DS_Store").write_bytes(b"\0\1")
        (train / ".DS_Store").write_bytes(b"\0\1")
        (train / ".hidden").mkdir()
        concepts = datasets.read_concepts(tmp_path, "yollava")
        assert [concept.key for concept in concepts] == ["mug"]
        photos = datasets.reference_photos(tmp_path, "yollava", False, "train", concepts, 5)
        assert [photo.path.name for photo in photos] == ["0.png", "1.png"]
        assert "are not read" not in caplog.text

    @pytest.mark.parametrize("inside", ["myvlm/data", "myvlm", "data", "."])
    def test_myvlm_wherever_its_folders_lie(self, tmp_path: Path, inside: str) -> None:
        write_photos(tmp_path / inside / "red_chicken", ["red_chicken_1.jpg"])
        (tmp_path / inside / "docs").mkdir()
        write_photos(tmp_path / inside / "docs", ["teaser.png"])
        assert [concept.key for concept in datasets.read_concepts(tmp_path, "myvlm")] == ["red_chicken"]

    def test_the_card_s_older_tree_of_this_is_my(self, tmp_path: Path) -> None:
        single = tmp_path / "This-is-My-Img/Single-concept"
        write_photos(single / "Reference Images/Alexs hat-hat", ["v0.png"])
        write_photos(single / "Validation/positive/Alexs hat-hat", ["q.png"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        assert [concept.key for concept in concepts] == ["Alexs hat-hat"]
        _, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", "Positive", concepts)
        assert [photo.path.name for photo in photos] == ["q.png"]

    def test_folders_of_another_case(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        train = tmp_path / "YOLLAVA/Train"
        for folder in ("mug", "mug/Negative_Example", "Negative_Example"):
            write_photos(train / folder, ["0.png"])
        caplog.set_level(logging.INFO)
        concepts = datasets.read_concepts(tmp_path, "yollava")
        assert [concept.key for concept in concepts] == ["mug"]
        assert f"left out {train / 'Negative_Example'}: not a concept" in caplog.text
        assert len(datasets.reference_photos(tmp_path, "yollava", False, "train", concepts, 1)) == 1
        assert "are not read" not in caplog.text

    def test_a_folder_with_the_category_of_the_published_list_is_the_published_concepts(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["a-mug", "thap-cham", "pig-cup-cup"], train=1, test=1)
        concepts = datasets.read_concepts(tmp_path, "yollava")
        assert [concept.key for concept in concepts] == ["pig-cup-cup", "thap-cham", "a-mug"]

    def test_this_is_my_without_the_folder_of_its_single_concept_part(self, tmp_path: Path) -> None:
        write_photos(tmp_path / "This-is-My-Img/train/Alexs hat-hat", ["v0.png"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        assert [concept.key for concept in concepts] == ["Alexs hat-hat"]
        with pytest.raises(UserError, match="has no This-is-My-Img/Multi-concept in it"):
            datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        with pytest.raises(UserError, match="has no This-is-My-Img/Single-concept in it"):  # it may be of another
            datasets.read_concepts(tmp_path / "This-is-My-Img", "this-is-my")
        (tmp_path / "This-is-My-Img/train").rename(tmp_path / "This-is-My-Img/elsewhere")
        with pytest.raises(UserError, match="has no This-is-My-Img/Single-concept in it"):
            datasets.read_concepts(tmp_path, "this-is-my")

    def test_a_split_without_concepts(self, tmp_path: Path) -> None:
        (tmp_path / "YoLLaVA/train").mkdir(parents=True)
        with pytest.raises(UserError, match=r"train holds no concept folders"):
            datasets.read_concepts(tmp_path, "yollava")

    @pytest.mark.parametrize("dataset", ["myvlm", "yollava", "this-is-my"])
    def test_a_folder_without_the_data_set(self, tmp_path: Path, dataset: str) -> None:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(UserError, match="--data_folder"):
                datasets.read_concepts(folder, dataset)

    def test_multi_concept_is_this_is_my_s_alone(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug"])
        with pytest.raises(UserError, match="--multi_concept"):
            datasets.read_concepts(tmp_path, "yollava", multi_concept=True)


class TestReferencePhotos:
    def test_the_first_n_in_natural_order(self, tmp_path: Path) -> None:
        write_photos(tmp_path / "YoLLaVA/train/mug", [f"{n}.png" for n in (10, 11, 9, 1, 2, 0)])
        (tmp_path / "YoLLaVA/test").mkdir()
        concepts = datasets.read_concepts(tmp_path, "yollava")
        photos = datasets.reference_photos(tmp_path, "yollava", False, "train", concepts, 4)
        assert [photo.name for photo in photos] == [f"YoLLaVA/train/mug/{n}.png" for n in (0, 1, 2, 9)]
        assert all(photo.concepts == ("mug",) for photo in photos)

    def test_image_types_by_content_in_any_case(self, tmp_path: Path) -> None:
        folder = tmp_path / "myvlm/data/maeve_dog"
        write_photos(folder, ["maeve_dog_1.JPG", "maeve_dog_8.jpeg", "maeve_dog_10.jpeg", "maeve_dog_2.PNG"])
        picture(1).save(folder / "maeve_dog_3", "PNG")  # an image without a suffix
        picture(1).save(folder / "maeve_dog_4.dat", "JPEG")
        picture(2).save(folder / "maeve_dog_5.jpg", "PNG")  # its suffix is wrong
        (folder / "notes.txt").write_text("no photo")
        (folder / "._maeve_dog_1.JPG").write_bytes(b"\0\5\x16\7")  # what macOS leaves on disks of others
        (folder / "scores.json").write_text("{}")
        expected = ["1.JPG", "2.PNG", "3", "4.dat", "5.jpg", "8.jpeg", "10.jpeg"]
        assert [path.name for path in datasets.list_photos(folder)] == [f"maeve_dog_{name}" for name in expected]
        assert open_image(folder / "maeve_dog_5.jpg").size == (80, 60)

    @pytest.mark.parametrize("kind", ["DDS", "JPEG2000", "PPM", "PNG"])
    def test_damaged_files_without_an_images_suffix_do_not_count(self, tmp_path: Path, kind: str) -> None:
        write_photos(tmp_path, ["0.png"])
        (tmp_path / "notes").write_bytes(broken(kind))
        assert [path.name for path in datasets.list_photos(tmp_path)] == ["0.png"]

    def test_photos_beside_and_below_concept_folders_are_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = write_yollava(tmp_path, ["lamp"], train=1, test=1)
        for split in ("train", "test"):
            write_photos(data / "YoLLaVA" / split, ["b.png", "a.JPG"])
            write_photos(data / "YoLLaVA" / split / "lamp/more", ["c.png"])
            (data / "YoLLaVA" / split / "notes.txt").write_text("no photo")
            (data / "YoLLaVA" / split / "lamp/empty").mkdir()
        concepts = datasets.read_concepts(data, "yollava")
        for split, read in (
            ("train", lambda: datasets.reference_photos(data, "yollava", False, "train", concepts, 1)),
            ("test", lambda: datasets.query_photos(data, "yollava", False, "test", None, concepts)[1]),
        ):
            caplog.clear()
            assert [photo.path.name for photo in read()] == ["0.png"]
            folder = data / "YoLLaVA" / split
            assert f"2 photos directly in {folder}, such as a.JPG" in caplog.text
            assert f"{folder / 'lamp/more'}: photos in folders inside" in caplog.text
            assert "lamp/empty" not in caplog.text and "fewer than" not in caplog.text

    def test_one_photo_is_no_photos(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = write_yollava(tmp_path, ["lamp"], train=1, test=1)
        write_photos(data / "YoLLaVA/train", ["b.png"])
        concepts = datasets.read_concepts(data, "yollava")
        datasets.reference_photos(data, "yollava", False, "train", concepts, 2)
        assert "taking what is found, 1 folder: lamp" in caplog.text
        assert f"1 photo directly in {data / 'YoLLaVA/train'}" in caplog.text
        assert "lamp has 1 photo: fewer than the 2 views asked for" in caplog.text

    def test_a_concept_without_a_photo(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug", "lamp"], train=1)
        (tmp_path / "YoLLaVA/train/lamp/0.png").unlink()
        concepts = datasets.read_concepts(tmp_path, "yollava")
        with pytest.raises(UserError, match="lamp holds no photo"):
            datasets.reference_photos(tmp_path, "yollava", False, "train", concepts, 1)


class TestQueryPhotos:
    HATS = ("Alexs hat-hat", "Blippis shoes-shoes")

    def test_names_are_the_same_in_every_form_of_letters(self, tmp_path: Path) -> None:
        """As one of two folders has been on another file system."""
        for folder in ("train/cafe\u0301-mug", "train/momo", "test/caf\u00e9-mug", "test/Momo", "test/momo-mug"):
            write_photos(tmp_path / "YoLLaVA" / folder, ["0.png"])
        concepts = datasets.read_concepts(tmp_path, "yollava")
        _, photos = datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)
        shown = {photo.path.parent.name: photo.concepts for photo in photos}
        assert shown == {"caf\u00e9-mug": ("cafe\u0301-mug",), "Momo": ("momo",), "momo-mug": ("momo-mug",)}

    def test_names_that_differ_by_case_alone_are_two_where_both_are_concepts(self, tmp_path: Path) -> None:
        write_photos(tmp_path / "YoLLaVA/train/momo", ["0.png"])
        if (tmp_path / "YOLLAVA").exists():
            pytest.skip("this file system does not tell case")
        for folder in ("train/Momo", "test/momo", "test/Momo", "test/MOMO"):
            write_photos(tmp_path / "YoLLaVA" / folder, ["0.png"])
        concepts = datasets.read_concepts(tmp_path, "yollava")
        _, photos = datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)
        shown = {photo.path.parent.name: photo.concepts for photo in photos}
        assert shown == {name: (name,) for name in ("momo", "Momo", "MOMO")}

    def test_labels_are_the_folders(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug", "lamp"], test=2)
        concepts = datasets.read_concepts(tmp_path, "yollava")
        units, photos = datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)
        assert [unit.name for unit in units] == ["lamp", "mug"]
        assert [(photo.name, photo.concepts) for photo in photos] == [
            (f"YoLLaVA/test/{key}/{n}.png", (key,)) for key in ("lamp", "mug") for n in (0, 1)
        ]

    def test_a_split_without_photos(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug"], test=0)
        concepts = datasets.read_concepts(tmp_path, "yollava")
        with pytest.raises(UserError, match=r"test holds no photo in concept folders"):
            datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)

    def test_photos_of_a_concept_without_references_stay_as_negatives(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["mug", "lamp"], test=2)
        shutil.rmtree(tmp_path / "YoLLaVA/train/lamp")
        concepts = datasets.read_concepts(tmp_path, "yollava")
        units, photos = datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)
        assert [unit.name for unit in units] == ["mug"]
        assert [photo.concepts for photo in photos] == [("lamp",)] * 2 + [("mug",)] * 2

    @pytest.mark.parametrize("split", ["Positive", "Fake", "Negative (Hard)", "Negative (Other)"])
    def test_each_split_of_this_is_my(self, tmp_path: Path, split: str) -> None:
        write_this_is_my(tmp_path, self.HATS, test=1)
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        _, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", split, concepts)
        assert [photo.name for photo in photos] == [
            f"This-is-My-Img/Single-concept/test/{split}/{key}/q0.png" for key in self.HATS
        ]

    def test_folders_of_this_is_my_may_leave_a_category_out_but_not_add_one(self, tmp_path: Path) -> None:
        write_this_is_my(tmp_path, ("Alexs hat-hat", "mug"), test=1)
        positive = tmp_path / "This-is-My-Img/Single-concept/test/Positive"
        (positive / "Alexs hat-hat").rename(positive / "Alexs hat")
        (positive / "mug").rename(positive / "mug-fake")
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        _, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", "Positive", concepts)
        assert {photo.path.parent.name: photo.concepts for photo in photos} == {
            "Alexs hat": ("Alexs hat-hat",),
            "mug-fake": ("mug-fake",),
        }

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        write_this_is_my(tmp_path, self.HATS)
        shutil.rmtree(tmp_path / "This-is-My-Img/Single-concept/test/Fake")
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        with pytest.raises(UserError, match=r"Fake.*Positive"):
            datasets.query_photos(tmp_path, "this-is-my", False, "test", "Fake", concepts)
        with pytest.raises(UserError, match="--split validation"):
            datasets.query_photos(tmp_path, "this-is-my", False, "validation", "Positive", concepts)

    def test_double_photos_show_two_concepts(self, tmp_path: Path) -> None:
        keys = ("Reynards keyboard-keyboard", "Reynards work chair-chair", "Nikkis camper bag-bag", "Nikkis car-car")
        write_this_is_my(tmp_path, (*keys, "Alexs hat-hat"), test=1)
        positive = tmp_path / "This-is-My-Img/Single-concept/test/Positive"
        for key in (*keys, "Alexs hat-hat"):
            write_photos(positive / key, ["q_double.png", "r_Double.PNG", "double.png"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        _, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", "Positive", concepts)
        shown = {(photo.concepts[0], photo.path.name): set(photo.concepts) for photo in photos}
        for one, other in (keys[:2], keys[:2][::-1], keys[2:], keys[2:][::-1]):
            assert shown[one, "q_double.png"] == shown[one, "r_Double.PNG"] == {one, other}
            assert shown[one, "q0.png"] == shown[one, "double.png"] == {one}
        assert shown["Alexs hat-hat", "q_double.png"] == {"Alexs hat-hat"}

    def test_multi_concept_units(self, tmp_path: Path) -> None:
        pairs = ["Alex_and_Alexs hat", "Casey_and_Caseys boosted board"]
        keys = ["Alex-woman", "Alexs hat-hat", "Casey-man", "Caseys boosted board-skateboard"]
        write_multi(tmp_path, keys, pairs, test=1)
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        assert [concept.key for concept in concepts] == [keys[2], keys[3], keys[0], keys[1]]  # published order
        units, photos = datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)
        assert {unit.name: set(unit.concepts) for unit in units} == {
            pairs[0]: {"Alex-woman", "Alexs hat-hat"},
            pairs[1]: {"Casey-man", "Caseys boosted board-skateboard"},
        }
        assert [set(photo.concepts) for photo in photos] == [set(unit.concepts) for unit in units]

    def test_a_test_folder_without_the_category_is_the_concepts(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = ("Alexs hat-hat", "Reynards keyboard-keyboard", "Reynards work chair-chair")
        write_this_is_my(tmp_path, keys, test=0)
        positive = tmp_path / "This-is-My-Img/Single-concept/test/Positive"
        write_photos(positive / "Alex's hat", ["1.png"])
        write_photos(positive / "reynards keyboard", ["1.png", "2_double.png"])
        write_photos(positive / "Alexs boat", ["1.png"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        units, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", "Positive", concepts)
        assert {f"{photo.path.parent.name}/{photo.path.name}": photo.concepts for photo in photos} == {
            "Alex's hat/1.png": keys[:1],
            "Alexs boat/1.png": ("Alexs boat",),
            "reynards keyboard/1.png": keys[1:2],
            "reynards keyboard/2_double.png": keys[1:],
        }
        caplog.clear()
        datasets.warn_of_unknown(photos, concepts, units)
        assert [record.getMessage().split(" has ")[0] for record in caplog.records] == ["Alexs boat"]
        caplog.clear()
        datasets.warn_of_unknown([p for p in photos if "double" not in p.name], concepts, units)
        told = f"1 concept without test photos, such as {keys[2]}: recall and means are NaN"
        assert told in caplog.text

    def test_elsewhere_a_test_folder_of_almost_the_name_is_of_other_things(self, tmp_path: Path) -> None:
        write_yollava(tmp_path, ["pig-cup"], test=1)
        for other in ("pig", "pig-cup-fake"):
            write_photos(tmp_path / "YoLLaVA/test" / other, ["0.png"])
        concepts = datasets.read_concepts(tmp_path, "yollava")
        _, photos = datasets.query_photos(tmp_path, "yollava", False, "test", None, concepts)
        assert [photo.concepts for photo in photos] == [("pig",), ("pig-cup",), ("pig-cup-fake",)]

    def test_a_folder_that_names_no_pair_is_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        pairs = ["Alex_and_Alexs hat", "Alex_and_Alexs boat", "unsorted"]
        write_multi(tmp_path, ["Alex-woman", "Alexs hat-hat"], pairs, test=1)
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        caplog.clear()
        units, photos = datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)
        assert [unit.name for unit in units] == pairs[:1]
        assert [photo.path.parent.name for photo in photos] == pairs[:1]
        folder = tmp_path / "This-is-My-Img/Multi-concept/test"
        told = "its name does not read as A_and_B of the concepts in train (Alex-woman, Alexs hat-hat)"
        assert {record.getMessage() for record in caplog.records} == {
            f"left out {folder / name}: {told}" for name in pairs[1:]
        }

    def test_a_pair_of_unknown_concepts(self, tmp_path: Path) -> None:
        write_multi(tmp_path, ["Alex-woman"], ["Alex_and_Alexs boat"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        with pytest.raises(UserError, match="Alex_and_Alexs boat"):
            datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)

    def test_no_pair_at_all(self, tmp_path: Path) -> None:
        write_multi(tmp_path, ["Alex-woman"], [])
        (tmp_path / "This-is-My-Img/Multi-concept/test").mkdir()
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        with pytest.raises(UserError, match="test holds no photo in folders named A_and_B"):
            datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)

    @pytest.mark.parametrize("name", ["Alex", "Alex_and_Nobody"])
    def test_a_folder_that_names_one_concept_is_no_unit(self, tmp_path: Path, name: str) -> None:
        write_multi(tmp_path, ["Alex-woman", "Alexs hat-hat"], ["Alex_and_Alexs hat", name], test=1)
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        with suppress(UserError):  # refusing it is as good
            units, _ = datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)
            assert [unit.name for unit in units] == ["Alex_and_Alexs hat"]


def test_unlabelled_photos_are_those_of_all_folders_below(tmp_path: Path) -> None:
    write_photos(tmp_path / "holiday", ["10.png", "2.png"])
    write_photos(tmp_path / "holiday/day 10", ["a.png"])
    write_photos(tmp_path / "holiday/day 9/noon", ["a.png"])
    for left_out in (".thumbs", "__MACOSX", "results"):
        write_photos(tmp_path / "holiday" / left_out, ["a.png"])
    write_photos(tmp_path / "elsewhere/docs", ["b.png"])
    (tmp_path / "holiday/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/docs/back").symlink_to(tmp_path / "holiday")
    (tmp_path / "holiday/notes.txt").write_text("no photo")
    photos = datasets.unlabelled_photos(tmp_path / "holiday", tmp_path / "holiday/results")
    assert [photo.name for photo in photos] == [
        *("2.png", "10.png", "day 9/noon/a.png", "day 10/a.png", "link/docs/b.png")
    ]
    assert {photo.concepts for photo in photos} == {()}
    assert photos[2].path == tmp_path / "holiday/day 9/noon/a.png"
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "holds no photo"), ("none", "is no folder"), ("holiday/2.png", "is no folder")):
        with pytest.raises(UserError, match=f"--photos .*{folder} {words}"):
            datasets.unlabelled_photos(tmp_path / folder, tmp_path / "results")


def test_without_reference_photos_it_is_said_where_they_go(tmp_path: Path) -> None:
    (tmp_path / "YoLLaVA/test/mug").mkdir(parents=True)
    with pytest.raises(UserError, match=r"YoLLaVA/train is not there.*put reference photos into .*train/CONCEPT/"):
        datasets.read_concepts(tmp_path, "yollava", multi_concept=False)


def test_names_in_another_encoding_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "YoLLaVA/train/mug"
    folder.mkdir(parents=True)
    photo = os.fsencode(folder) + b"/caf\xe9.png"
    with open(photo, "wb"):
        pass
    with pytest.raises(UserError, match=r"mug/caf\\xe9\.png: its name is not in UTF-8"):
        datasets.list_photos(folder)
    os.unlink(photo)
    os.mkdir(os.fsencode(folder.parent) + b"/caf\xe9")
    with pytest.raises(UserError, match=r"train/caf\\xe9: its name is not in UTF-8"):
        datasets.read_concepts(tmp_path, "yollava")
