"""The benchmarks' folders: concepts, order, prompts, names, photos, splits, and the traps that lie in them."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import struct
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write_multi, write_photos, write_this_is_my, write_yollava
from PIL import Image

from pekit import datasets
from pekit.records import PhotoError, UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


def broken(kind: str) -> bytes:
    """A photo with damage that its decoder does not expect: Pillow raises the error named beside it."""
    file = io.BytesIO()
    if kind == "DDS":  # flags of a pixel format that there is not: NotImplementedError
        picture(8).save(file, kind)
        content = bytearray(file.getvalue())
        content[80:84] = (16).to_bytes(4, "little")
        return bytes(content)
    if kind == "JPEG":  # turned by 90 degrees, a resolution that is text: TypeError
        tags = [(0x0112, 3, 1, b"\0\6\0\0"), (0x011A, 2, 4, b"two\0")]
        entries = b"".join(struct.pack(">HHI4s", *tag) for tag in tags)
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
        picture(8).save(file, kind, exif=exif)
        return file.getvalue()
    return {
        "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
        + struct.pack(">I4sQ", 1, b"jp2h", 2**52),  # a header of 2^52 bytes: MemoryError
        "PPM": b"P3 is where the path begins.\n",  # ValueError
        "PNG": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 3, b"IHDR") + bytes(7),  # ValueError
    }[kind]


class TestNames:
    @pytest.mark.parametrize(
        ("dataset", "folder", "prompt"),
        [
            ("this-is-my", "Alexs hat-hat", "alexs hat hat."),
            ("this-is-my", "Caseys boosted board-skateboard", "caseys boosted board skateboard."),
            ("yollava", "pig-cup", "pig cup."),
            ("yollava", "nha-tho-hcm", "nha tho hcm."),
            ("myvlm", "Bull", "bull."),
        ],
    )
    def test_grounding_prompt(self, dataset: str, folder: str, prompt: str) -> None:
        assert datasets.concept_of_folder(dataset, folder).prompt == prompt

    @pytest.mark.parametrize(
        ("dataset", "folder", "name"),
        [
            ("this-is-my", "Alexs hat-hat", "Alex's hat"),
            ("this-is-my", "Zaks dog kona-dog", "Zak's dog Kona"),
            ("this-is-my", "Casey-man", "Casey"),
            ("myvlm", "maeve_dog", "maeve dog"),
        ],
    )
    def test_display_name(self, dataset: str, folder: str, name: str) -> None:
        assert datasets.concept_of_folder(dataset, folder).name == name

    @pytest.mark.parametrize(
        ("short", "key"),
        [
            ("Casey", "Casey-man"),
            ("Caseys boosted board", "Caseys boosted board-skateboard"),
            ("Caseys friend marlan", "Caseys friend marlan-man"),
            ("Zak", "Zak-man"),
            ("Zaks dog coffee", "Zaks dog coffee-dog"),
            ("Alex's hat", "Alexs hat-hat"),
            ("Alexs hat-hat", "Alexs hat-hat"),
            ("Nobody", None),
        ],
    )
    def test_a_short_name_finds_its_folder(self, short: str, key: str | None) -> None:
        names = datasets.published("this-is-my", multi_concept=True)
        concepts = [datasets.concept_of_folder("this-is-my", name) for name in names]
        found = datasets.resolve_name(short, concepts)
        assert (found.key if found else None) == key

    def test_a_short_name_of_two_folders_is_refused_and_their_own_names_are_not(self) -> None:
        folders = ("anna-woman", "anna-dog", "anna mug-mug")
        concepts = [datasets.concept_of_folder("this-is-my", folder) for folder in folders]
        with pytest.raises(UserError, match='"Anna" may mean the concept anna-woman or anna-dog: use the whole name'):
            datasets.resolve_name("Anna", concepts)
        assert [datasets.resolve_name(own.key, concepts) for own in concepts] == concepts

    def test_published_lists_have_their_lengths(self) -> None:
        lengths = [len(datasets.published(name)) for name in ("myvlm", "yollava", "this-is-my")]
        assert [*lengths, len(datasets.published("this-is-my", True))] == [29, 40, 14, 21]

    def test_natural_order(self) -> None:
        names = ["10.png", "2.png", "1.png", "v10_double.png", "v9.png", "img_2b.png", "img_10a.png"]
        expected = ["1.png", "2.png", "10.png", "img_2b.png", "img_10a.png", "v9.png", "v10_double.png"]
        assert sorted(names, key=datasets.natural_key) == expected

    @pytest.mark.parametrize(
        "expected",
        [
            ["01.png", "1.png", "2.png"],
            ["IMG_1.png", "img_1.png", "img_2.png"],
            ["5", "5\u00b2", "6"],
            ["\u0663", "4"],  # an Arabic three
            ["a", "a1", "a1b"],
        ],
    )
    def test_natural_order_does_not_depend_on_the_order_before(self, expected: list[str]) -> None:
        for names in permutations(expected):
            assert sorted(names, key=datasets.natural_key) == expected


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
        for name in reversed(datasets.published("myvlm")):
            write_photos(tmp_path / "myvlm/data" / name.replace(" ", "_"), ["a.jpg"])
        with caplog.at_level(logging.WARNING):
            concepts = datasets.read_concepts(tmp_path, "myvlm")
        assert [concept.key.replace("_", " ") for concept in concepts] == list(datasets.published("myvlm"))
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
        (folder / "scores.json").write_text("{}")
        expected = ["1.JPG", "2.PNG", "3", "4.dat", "5.jpg", "8.jpeg", "10.jpeg"]
        assert [path.name for path in datasets.list_photos(folder)] == [f"maeve_dog_{name}" for name in expected]
        assert datasets.open_image(folder / "maeve_dog_5.jpg").size == (80, 60)

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
            write_photos(positive / key, ["q_double.png", "double.png"])
        concepts = datasets.read_concepts(tmp_path, "this-is-my")
        _, photos = datasets.query_photos(tmp_path, "this-is-my", False, "test", "Positive", concepts)
        shown = {(photo.concepts[0], photo.path.name): set(photo.concepts) for photo in photos}
        for one, other in (keys[:2], keys[:2][::-1], keys[2:], keys[2:][::-1]):
            assert shown[one, "q_double.png"] == {one, other}
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

    @pytest.mark.parametrize("name", ["Alex", "Alex_and_Nobody"])
    def test_a_folder_that_names_one_concept_is_no_unit(self, tmp_path: Path, name: str) -> None:
        write_multi(tmp_path, ["Alex-woman", "Alexs hat-hat"], ["Alex_and_Alexs hat", name], test=1)
        concepts = datasets.read_concepts(tmp_path, "this-is-my", multi_concept=True)
        with suppress(UserError):  # refusing it is as good
            units, _ = datasets.query_photos(tmp_path, "this-is-my", True, "test", None, concepts)
            assert [unit.name for unit in units] == ["Alex_and_Alexs hat"]


class TestOpenImage:
    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "P", "CMYK", "YCbCr"])
    def test_any_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        source = picture(5).convert(mode)
        source.save(tmp_path / "x.tif" if mode in ("CMYK", "YCbCr") else tmp_path / "x.png")
        image = datasets.open_image(next(tmp_path.iterdir()))
        assert (image.mode, image.size) == ("RGB", (80, 60))
        expected = np.asarray(source.convert("RGB")).astype(int)
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2

    def test_alpha_is_dropped_not_blended(self, tmp_path: Path) -> None:
        values = np.full((4, 4, 4), (10, 200, 30, 0), dtype=np.uint8)  # wholly transparent
        Image.fromarray(values).save(tmp_path / "x.png")
        assert (np.asarray(datasets.open_image(tmp_path / "x.png")) == (10, 200, 30)).all()

    def test_sixteen_bit_grey_is_scaled_not_clipped(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)  # 0, 1, 128 and 255 times 257
        Image.fromarray(values).save(tmp_path / "x.png")
        found = np.asarray(datasets.open_image(tmp_path / "x.png"))
        np.testing.assert_array_equal(found[0, :, 0], [0, 1, 128, 255])
        np.testing.assert_array_equal(found[0], found[0, :, :1].repeat(3, axis=1))

    @pytest.mark.parametrize("top", [1, 255, 65535])
    def test_floating_point_grey_in_each_of_its_ranges(self, tmp_path: Path, top: float) -> None:
        Image.fromarray(np.array([[0, 0.2, 0.6, 1]], dtype=np.float32) * top).save(tmp_path / "x.tif")
        found = np.asarray(datasets.open_image(tmp_path / "x.tif"))
        np.testing.assert_array_equal(found[0, :, 0], [0, 51, 153, 255])

    def test_a_photo_too_large_is_told_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
        Image.new("RGB", (2000, 1500)).save(tmp_path / "x.png")  # above the limit, below twice the limit
        assert datasets.open_image(tmp_path / "x.png").size == (2000, 1500)
        Image.new("RGB", (2500, 2000)).save(tmp_path / "x.png")
        with pytest.raises(PhotoError, match=r"x\.png has more than 4 megapixels: shrink it"):
            datasets.open_image(tmp_path / "x.png")

    def test_exif_orientation_only_where_asked_for(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90°
        picture(6).save(tmp_path / "x.jpg", exif=exif)
        assert datasets.open_image(tmp_path / "x.jpg").size == (80, 60)
        assert datasets.open_image(tmp_path / "x.jpg", exif=True).size == (60, 80)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (POINTER, "git lfs pull"),
            (b"", "cannot be read as an image: it is empty"),
            (b"this is no image", "cannot be read as an image: it is of no known kind"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC photo: convert it"),
            ("half", "cannot be read"),
            (None, "not there"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path: Path, content: bytes | str | None, words: str) -> None:
        file = tmp_path / "x.png"
        if content == "half":
            picture(7).save(file)
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif isinstance(content, bytes):
            file.write_bytes(content)
        with pytest.raises(PhotoError, match=words) as error:
            datasets.open_image(file)
        assert "x.png" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("kind", ["DDS", "JPEG2000", "JPEG", "PPM", "PNG"])
    def test_damage_of_any_kind_is_named(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "x.png").write_bytes(broken(kind))
        with pytest.raises(PhotoError, match=r"x\.png cannot be read as an image: \w"):
            datasets.open_image(tmp_path / "x.png", exif=True)

    def test_squash_keeps_no_aspect_ratio_and_antialiases(self) -> None:
        stripes = np.zeros((100, 200, 3), dtype=np.uint8)
        stripes[:, ::2] = 200  # stripes one pixel wide: any antialiased reduction of four gives flat grey
        found = np.asarray(datasets.squash(Image.fromarray(stripes), 50))
        assert found.shape == (50, 50, 3)
        assert np.abs(found[:, 2:-2].astype(int) - 100).max() <= 1

    def test_squash_bilinearly(self) -> None:
        image = Image.fromarray(np.array([[[0] * 3, [200] * 3]], dtype=np.uint8))
        row = np.asarray(datasets.squash(image, 4))[0, :, 0]
        np.testing.assert_array_equal(row, [0, 50, 150, 200])


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


def test_concepts_are_the_published_ones() -> None:
    """The bundled lists as the released code spells them, at places checked one by one."""
    assert datasets.published("myvlm")[:2] == ("colorful teapot", "sheep plush")
    assert datasets.published("yollava")[-1] == "shiba-black-black plush"
    assert datasets.published("this-is-my")[13] == "Nikkis car-car"
    assert json.dumps(datasets.name_map("invented")).count("Vex") == 1
