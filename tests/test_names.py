"""Names of concepts: prompts, display names, short names, natural order; the published lists."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from pekit.names import concept_of_folder, name_map, natural_key, published, resolve_name
from pekit.records import UserError


class TestNames:
    @pytest.mark.parametrize(
        ("dataset", "folder", "prompt"),
        [
            ("this-is-my", "Alexs hat-hat", "alexs hat hat."),
            ("this-is-my", "Caseys boosted board-skateboard", "caseys boosted board skateboard."),
            ("yollava", "pig-cup", "pig cup."),
            ("yollava", "nha-tho-hcm", "nha tho hcm."),
            ("myvlm", "Bull", "bull."),
            ("yollava", "mr-teddy-jr.", "mr teddy jr."),
            ("yollava", "mug-", "mug."),
        ],
    )
    def test_grounding_prompt(self, dataset: str, folder: str, prompt: str) -> None:
        assert concept_of_folder(dataset, folder).prompt == prompt

    @pytest.mark.parametrize(
        ("dataset", "folder", "name"),
        [
            ("this-is-my", "Alexs hat-hat", "Alex's hat"),
            ("this-is-my", "Zaks dog kona-dog", "Zak's dog Kona"),
            ("this-is-my", "Casey-man", "Casey"),
            ("this-is-my", "Casey", "Casey"),
            ("myvlm", "maeve_dog", "maeve dog"),
        ],
    )
    def test_display_name(self, dataset: str, folder: str, name: str) -> None:
        assert concept_of_folder(dataset, folder).name == name

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
            (" Casey_", "Casey-man"),
            ("Nobody", None),
        ],
    )
    def test_a_short_name_finds_its_folder(self, short: str, key: str | None) -> None:
        names = published("this-is-my", multi_concept=True)
        concepts = [concept_of_folder("this-is-my", name) for name in names]
        found = resolve_name(short, concepts)
        assert (found.key if found else None) == key

    def test_a_short_name_of_two_folders_is_refused_and_their_own_names_are_not(self) -> None:
        folders = ("anna-woman", "anna-dog", "anna mug-mug")
        concepts = [concept_of_folder("this-is-my", folder) for folder in folders]
        with pytest.raises(UserError, match='"Anna" may mean the concept anna-woman or anna-dog: use the whole name'):
            resolve_name("Anna", concepts)
        assert [resolve_name(own.key, concepts) for own in concepts] == concepts

    @pytest.mark.parametrize("short", ["Annas mug", "Anna's mug", "Anna\u2019s mug"])
    @pytest.mark.parametrize("folder", ["Annas mug-mug", "Anna's mug-mug"])
    def test_an_apostrophe_does_not_matter_in_names_that_are_not_published(self, short: str, folder: str) -> None:
        own = concept_of_folder("this-is-my", folder)
        assert resolve_name(short, [own]) == own

    def test_published_lists_have_their_lengths(self) -> None:
        lengths = [len(published(name)) for name in ("myvlm", "yollava", "this-is-my")]
        assert [*lengths, len(published("this-is-my", True))] == [29, 40, 14, 21]

    def test_natural_order(self) -> None:
        names = ["10.png", "2.png", "1.png", "v10_double.png", "v9.png", "img_2b.png", "img_10a.png"]
        expected = ["1.png", "2.png", "10.png", "img_2b.png", "img_10a.png", "v9.png", "v10_double.png"]
        assert sorted(names, key=natural_key) == expected

    @pytest.mark.parametrize(
        "expected",
        [
            ["01.png", "1.png", "2.png"],
            ["IMG_1.png", "img_1.png", "img_2.png"],
            ["a.png", "B.png", "c.png"],
            ["5", "5\u00b2", "6"],
            ["\u0663", "4"],  # an Arabic three
            ["a", "a1", "a1b"],
        ],
    )
    def test_natural_order_does_not_depend_on_the_order_before(self, expected: list[str]) -> None:
        for names in permutations(expected):
            assert sorted(names, key=natural_key) == expected


def test_concepts_are_the_published_ones() -> None:
    """The bundled lists as the released code spells them, at places checked one by one."""
    assert published("myvlm")[:2] == ("colorful teapot", "sheep plush")
    assert published("yollava")[-1] == "shiba-black-black plush"
    assert published("this-is-my")[13] == "Nikkis car-car"
    assert json.dumps(name_map("invented")).count("Vex") == 1
