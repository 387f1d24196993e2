"""View files and the gallery made from them: content, safety, released files, the seeded draw, the manifest."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pekit import views
from pekit.gallery import load_gallery, photo_stems
from pekit.records import Concept, UserError, View

RELEASED = Path(__file__).parents[2] / "shared" / "released_view.pt.xz"


def view(concept: str = "mug", patches: int = 5, width: int = 8, seed: int = 0, augmentation: int = 0) -> View:
    values = np.random.default_rng(seed).normal(size=(patches, width)).astype(np.float32)
    mean = values.mean(0) if patches else np.zeros(width, dtype=np.float32)
    return View(concept, f"YoLLaVA/train/{concept}/0.png", augmentation, values, mean)


def concept(key: str) -> Concept:
    return Concept(key, f"{key}.", key)


def store(folder: Path, key: str, stems: list[str], augmentations: int = 0, seed: int = 0) -> None:
    for i, stem in enumerate(stems):
        for number in range(augmentations + 1):
            path = views.view_file(folder, key, stem, number)
            views.save_view(path, view(key, seed=seed + 100 * i + number, augmentation=number))


def names_in_use(folder: Path, *keys: str, variation: str = "normal", n: int = 5, seed: int = 42) -> list[str]:
    return list(load_gallery(folder, [concept(key) for key in keys], variation, n, seed).files)


class TestPaths:
    @pytest.mark.parametrize(
        ("dataset", "multi", "sam", "expected"),
        [
            ("yollava", False, False, "f/yollava/extracted_features"),
            ("yollava", False, True, "f/yollava/extracted_features/gsam"),
            ("this-is-my", True, False, "f/this-is-my/multi_concept/extracted_features"),
            ("this-is-my", True, True, "f/this-is-my/multi_concept/extracted_features/gsam"),
        ],
    )
    def test_published_folders(self, dataset: str, multi: bool, sam: bool, expected: str) -> None:
        assert views.views_folder(Path("f"), dataset, multi, sam) == Path(expected)

    def test_published_file_names(self) -> None:
        assert views.view_file(Path("f"), "Alexs hat-hat", "v0", 3) == Path("f/Alexs hat-hat/v0_3.pt")
        assert views.split_name(Path("f/maeve_dog_8_0.pt")) == ("maeve_dog_8", 0)
        for name in ("notes.pt", "_1.pt", "v0_\u00b2.pt", "v0_\u0663.pt"):  # a superscript, an Arabic three
            with pytest.raises(UserError, match=f"{name} is not named"):
                views.split_name(Path("f") / name)


class TestFiles:
    def test_content_and_size(self, tmp_path: Path) -> None:
        stored = view("pig-cup", patches=300, width=1024)
        views.save_view(tmp_path / "pig-cup" / "0_0.pt", stored)
        content = torch.load(tmp_path / "pig-cup" / "0_0.pt", weights_only=True)
        assert content["dino_obj_features"].dtype == torch.float16
        assert content["dino_obj_features"].shape == (300, 1024)
        np.testing.assert_allclose(content["dino_obj_features"].float().numpy(), stored.patches, rtol=1e-3, atol=1e-6)
        assert content["class_label"] == "pig cup"
        assert content["img_path"] == "YoLLaVA/train/pig-cup/0.png"
        full = [value for value in content.values() if torch.is_tensor(value) and value.dtype == torch.float32]
        assert len(full) == 1  # the descriptor as it was before the patches were rounded
        np.testing.assert_array_equal(full[0].numpy(), stored.descriptor)
        assert (tmp_path / "pig-cup" / "0_0.pt").stat().st_size < 300 * 2048 + 4096 + 4000
        assert [path.name for path in (tmp_path / "pig-cup").iterdir()] == ["0_0.pt"]

    def test_the_same_view_gives_the_same_bytes_under_any_name(self, tmp_path: Path) -> None:
        for name in ("a/0_0.pt", "b/1_0.pt"):
            views.save_view(tmp_path / name, view())
        assert (tmp_path / "a/0_0.pt").read_bytes() == (tmp_path / "b/1_0.pt").read_bytes()

    def test_round_trip(self, tmp_path: Path) -> None:
        stored = view("mug", augmentation=7)
        views.save_view(tmp_path / "mug" / "12_7.pt", stored)
        loaded = views.load_view(tmp_path / "mug" / "12_7.pt")
        assert (loaded.concept, loaded.photo, loaded.augmentation) == ("mug", stored.photo, 7)
        np.testing.assert_array_equal(loaded.descriptor, stored.descriptor)
        np.testing.assert_array_equal(loaded.patches, stored.patches.astype(np.float16))

    def test_an_empty_view_is_kept_but_matches_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        views.save_view(tmp_path / "mug" / "0_0.pt", view(patches=0))
        views.save_view(tmp_path / "mug" / "1_0.pt", view(patches=3))
        with caplog.at_level(logging.WARNING):
            gallery = load_gallery(tmp_path, [concept("mug")], "normal", 5, 42)
        assert gallery.valid.tolist() == [[False, True]]
        assert "0_0.pt" in caplog.text

    def test_only_empty_views(self, tmp_path: Path) -> None:
        views.save_view(tmp_path / "mug" / "0_0.pt", view(patches=0))
        assert not load_gallery(tmp_path, [concept("mug")], "normal", 5, 42).valid.any()

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "mug" / "0_0.pt"
        views.save_view(file, view(patches=400))
        whole = file.read_bytes()
        torn = "it is damaged or was not written by torch.save"
        for damaged, words in ((whole[: len(whole) // 2], torn), (b"", "it is empty"), (b"nonsense" * 50, torn)):
            file.write_bytes(damaged)
            with pytest.raises(UserError) as error:
                views.load_view(file)
            said = f"{file} cannot be read as a view ({words}): delete it and run extraction.py again"
            assert str(error.value) == said

    def test_an_archive_that_is_damaged_within_is_not_said_to_be_unsafe(self, tmp_path: Path) -> None:
        torch.save({"dino_obj_features": torch.zeros(2, 3)}, tmp_path / "whole.pt")
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "x_0.pt", "w") as damaged:
            for name in whole.namelist():
                damaged.writestr(name, b"\x80\x02nonsense" if name.endswith("data.pkl") else whole.read(name))
        with pytest.raises(UserError, match=r"x_0\.pt .*it is damaged or was not written by torch\.save"):
            views.load_view(tmp_path / "x_0.pt")

    def test_one_that_may_not_be_read_is_not_to_be_deleted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(torch, "load", refuse)  # whoever runs the tests may be allowed to read everything
        with pytest.raises(UserError, match=r"0_0\.pt may not be read: change its permissions"):
            views.load_view(tmp_path / "mug" / "0_0.pt")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"dino_obj_features": torch.zeros(3)}, r"patches (3,) and descriptor () are not"),
            ({"dino_obj_features": torch.zeros(0)}, "cannot be read"),
            ({"dino_obj_features": "patches"}, "it holds <U7 in place of numbers"),
            ({"dino_obj_features": None}, "it holds object in place of numbers"),
            ({"dino_obj_features": torch.zeros(2, 3), "descriptor": torch.zeros(4)}, "descriptor (4,) are not"),
            ({"dino_obj_features": torch.zeros(2, 3), "descriptor": "mean"}, "in place of numbers"),
        ],
    )
    def test_a_file_that_loads_but_holds_no_view_is_named(self, tmp_path: Path, content: dict, words: str) -> None:
        torch.save(content, tmp_path / "x_0.pt")
        with pytest.raises(UserError) as error:
            views.load_view(tmp_path / "x_0.pt")
        said = str(error.value)
        assert said.startswith(f"{tmp_path / 'x_0.pt'} cannot be read as a view (") and words in said
        assert said.endswith("): delete it and run extraction.py again")

    def test_patches_in_bf16(self, tmp_path: Path) -> None:
        torch.save({"dino_obj_features": torch.tensor([[1.0, 2.5], [3.0, -0.5]]).bfloat16()}, tmp_path / "x_0.pt")
        loaded = views.load_view(tmp_path / "x_0.pt")
        assert loaded.patches.tolist() == [[1.0, 2.5], [3.0, -0.5]]
        assert loaded.descriptor.tolist() == [2.0, 1.0]

    def test_the_mean_of_patches_in_fp16_is_not_rounded(self, tmp_path: Path) -> None:
        patches = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float16)
        torch.save({"dino_obj_features": torch.from_numpy(patches)}, tmp_path / "x_0.pt")
        expected = [sum(map(float, column)) / 300 for column in patches.T]
        np.testing.assert_allclose(views.load_view(tmp_path / "x_0.pt").descriptor, expected, atol=1e-7)

    def test_something_else_saved_by_torch_is_named(self, tmp_path: Path) -> None:
        for content in ({"weights": torch.zeros(3)}, torch.zeros(3), [1, 2]):
            torch.save(content, tmp_path / "x_0.pt")
            with pytest.raises(UserError) as error:
                views.load_view(tmp_path / "x_0.pt")
            said = f"{tmp_path / 'x_0.pt'} holds no dino_obj_features: it is no view; move it elsewhere"
            assert str(error.value) == said

    def test_one_that_is_gone_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"x_0\.pt cannot be read as a view \(.*No such file"):
            views.load_view(tmp_path / "x_0.pt")


class Trap:
    """Runs code when it is unpickled the unsafe way."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


class TestSafety:
    def test_pickles_that_run_code_are_refused(self, tmp_path: Path) -> None:
        witness = tmp_path / "it-ran"
        torch.save({"dino_obj_features": torch.zeros(2, 3), "x": Trap(witness)}, tmp_path / "a_0.pt")
        (tmp_path / "b_0.pt").write_bytes(pickle.dumps({"dino_obj_features": Trap(witness)}))
        values = np.empty(1, dtype=object)
        values[0] = Trap(witness)
        torch.save({"dino_obj_features": torch.zeros(2, 3), "npy_image": values}, tmp_path / "c_0.pt")
        for name in "abc":
            words = "not written by torch.save" if name == "b" else "which is not safe to load"
            with pytest.raises(UserError, match=rf"{name}_0\.pt .*{words}"):
                views.load_view(tmp_path / f"{name}_0.pt")
        assert not witness.exists()


class TestReleasedFiles:
    def write(self, path: Path, patches: int = 6, width: int = 16, as_array: bool = False) -> np.ndarray:
        """A file with the keys and types that the released code writes."""
        rng = np.random.default_rng(patches)
        features = rng.normal(size=(patches, width)).astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "npy_image": rng.integers(0, 255, (28, 28, 3), dtype=np.int32),
                "class_label": "Alexs hat hat",
                "img_path": "./datasets/This-is-My-Img/Multi-concept/train/Alexs hat-hat/v0.png",
                "feat_path": "./features/v0_1.pt",
                "class_token": None,
                "clip_patch_features": None,
                "dino_img_features": torch.zeros(2, 2, width),
                "dino_obj_features": features if as_array else torch.from_numpy(features),
                "sam_mask": [],
                "dino_mask": rng.random((1, 28, 28)) < 0.5,
            },
            path,
        )
        return features

    @pytest.mark.parametrize("as_array", [False, True])
    def test_arrays_among_tensors(self, tmp_path: Path, as_array: bool) -> None:
        features = self.write(tmp_path / "Alexs hat-hat" / "v0_1.pt", as_array=as_array)
        loaded = views.load_view(tmp_path / "Alexs hat-hat" / "v0_1.pt")
        np.testing.assert_array_equal(loaded.patches, features)
        np.testing.assert_allclose(loaded.descriptor, features.astype(np.float64).mean(0), atol=1e-6)
        assert (loaded.concept, loaded.augmentation) == ("Alexs hat-hat", 1)

    def test_a_normal_run_of_the_released_code_stored_view_1(self, tmp_path: Path) -> None:
        self.write(tmp_path / "hat" / "v0_1.pt")
        self.write(tmp_path / "hat" / "v1_1.pt", patches=0)
        gallery = load_gallery(tmp_path, [concept("hat")], "normal", 5, 42)
        assert list(gallery.files) == ["hat/v0_1.pt", "hat/v1_1.pt"]
        assert gallery.valid.tolist() == [[True, False]]

    @pytest.mark.skipif(not RELEASED.exists(), reason="the released file is not beside this checkout")
    def test_one_as_it_was_written(self, tmp_path: Path) -> None:
        import lzma

        file = tmp_path / "Alexs hat-hat" / "v0_1.pt"
        file.parent.mkdir()
        file.write_bytes(lzma.decompress(RELEASED.read_bytes()))
        loaded = views.load_view(file)
        assert loaded.patches.shape == (480, 1024)
        gallery = load_gallery(tmp_path, [concept("Alexs hat-hat")], "normal", 5, 42)
        expected = loaded.patches.astype(np.float64).mean(0)
        np.testing.assert_allclose(gallery.descriptors[0, 0], expected, atol=1e-6)
        assert np.abs(expected[:64]).min() > 0 and not expected[64:].any()


class TestGallery:
    def test_different_numbers_of_views(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", ["0", "1", "2"], seed=1)
        store(tmp_path, "lamp", ["0"], seed=2)
        gallery = load_gallery(tmp_path, [concept("mug"), concept("lamp")], "normal", 5, 42)
        assert gallery.keys == ("mug", "lamp")
        assert gallery.valid.tolist() == [[True, True, True], [True, False, False]]
        for c, (key, stems) in enumerate((("mug", "012"), ("lamp", "0"))):
            for v, stem in enumerate(stems):
                stored = views.load_view(tmp_path / key / f"{stem}_0.pt").descriptor
                np.testing.assert_array_equal(gallery.descriptors[c, v], stored)

    def test_normal_reads_untouched_photos_and_augment_reads_all(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", ["2", "10", "1"], augmentations=2)
        assert names_in_use(tmp_path, "mug") == ["mug/1_0.pt", "mug/2_0.pt", "mug/10_0.pt"]
        everything = names_in_use(tmp_path, "mug", variation="augment")
        assert everything == [f"mug/{stem}_{n}.pt" for stem in (1, 2, 10) for n in (0, 1, 2)]

    def test_augment_counts_photos_not_views(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", [str(n) for n in range(6)], augmentations=2)
        used = names_in_use(tmp_path, "mug", variation="augment", n=2)
        stems = {name.split("/")[1].split("_")[0] for name in used}
        assert len(stems) == 2
        assert sorted(used) == sorted(f"mug/{stem}_{n}.pt" for stem in stems for n in range(3))

    def test_the_draw_is_seeded_and_even(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", [str(n) for n in range(8)])
        assert names_in_use(tmp_path, "mug", n=3, seed=7) == names_in_use(tmp_path, "mug", n=3, seed=7)
        draws = [names_in_use(tmp_path, "mug", n=3, seed=seed) for seed in range(80)]
        assert all(len(set(draw)) == 3 for draw in draws)
        assert len({tuple(sorted(draw)) for draw in draws}) > 20  # of 56 possible ones
        counts = [sum(f"mug/{n}_0.pt" in draw for draw in draws) for n in range(8)]
        assert min(counts) > 12 and max(counts) < 50  # 30 expected of each

    def test_the_draw_does_not_depend_on_other_concepts(self, tmp_path: Path) -> None:
        for key in ("mug", "lamp", "kite"):
            store(tmp_path, key, [str(n) for n in range(8)])
        together = names_in_use(tmp_path, "kite", "mug", "lamp", n=3)
        alone = [name for key in ("kite", "mug", "lamp") for name in names_in_use(tmp_path, key, n=3)]
        assert together == alone
        photos = [[name.split("/")[1] for name in together[i : i + 3]] for i in (0, 3, 6)]
        assert photos[0] != photos[1] or photos[1] != photos[2]  # nor is it the same for every concept

    def test_fewer_than_asked_for(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store(tmp_path, "mug", ["0", "1"])
        with caplog.at_level(logging.WARNING):
            assert len(names_in_use(tmp_path, "mug", n=5)) == 2
        assert "mug" in caplog.text and "5" in caplog.text

    def test_no_views(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", ["0"])
        with pytest.raises(UserError, match=r"'lamp'.*extraction\.py"):
            names_in_use(tmp_path, "mug", "lamp")

    def test_stems_of_the_photos_in_use(self, tmp_path: Path) -> None:
        store(tmp_path, "mug", ["mug_1", "mug_2"], augmentations=1)
        gallery = load_gallery(tmp_path, [concept("mug")], "augment", 5, 42)
        assert photo_stems(gallery) == {"mug": {"mug_1", "mug_2"}}

    def test_views_of_different_widths(self, tmp_path: Path) -> None:
        views.save_view(tmp_path / "mug" / "0_0.pt", view(width=8))
        views.save_view(tmp_path / "mug" / "1_0.pt", view(width=16))
        with pytest.raises(UserError, match=r"8.*16"):
            names_in_use(tmp_path, "mug")


class TestManifest:
    @pytest.fixture
    def manifest(self) -> views.Manifest:
        def model(name: str) -> dict:
            return {"source": name, "name": name, "revision": "abc", "fingerprint": f"f-{name}"}

        return views.Manifest(
            models={"grounding": model("gd"), "features": model("dinov2-large")},
            mask_kind="box",
            size=518,
            min_mask_area=0,
            seed=42,
            n_augment=9,
            split="train",
            dtype="float32",
            exif=False,
            versions={"torch": "2"},
        )

    def test_round_trip(self, tmp_path: Path, manifest: views.Manifest) -> None:
        manifest.save(tmp_path)
        assert views.read_manifest(tmp_path) == manifest
        assert views.read_manifest(tmp_path / "none") is None

    @pytest.mark.parametrize("role", ["grounding", "features"])
    def test_another_model_is_named(self, manifest: views.Manifest, role: str) -> None:
        other = {"source": "other-model", "name": "other-model", "revision": None, "fingerprint": "f2"}
        difference = manifest.difference(replace(manifest, models={**manifest.models, role: other}))
        assert difference is not None
        assert manifest.models[role]["source"] in difference and "other-model" in difference

    def test_a_copy_of_the_same_model_is_the_same(self, manifest: views.Manifest) -> None:
        copy = {**manifest.models["features"], "source": "copies/x", "name": "copies/x", "revision": None}
        assert manifest.difference(replace(manifest, models={**manifest.models, "features": copy})) is None

    def test_a_model_whose_weights_are_not_on_disk_may_be_the_same(self, manifest: views.Manifest) -> None:
        unknown = {**manifest.models, "features": {**manifest.models["features"], "fingerprint": ""}}
        for one, other in ((manifest.models, unknown), (unknown, manifest.models)):
            assert replace(manifest, models=one).difference(replace(manifest, models=other)) is None

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"mask_kind": "sam"}, ("box", "sam")),
            ({"size": 224}, ("518", "224")),
            ({"min_mask_area": 2000}, ("min_mask_area 0", "2000")),
            ({"exif": True}, ("exif",)),
            ({"seed": 43}, ("42", "43")),
            ({"split": "test"}, ("split train", "test")),
            ({"n_augment": 3}, ("9 augmentations", "3")),
            ({"augmentation": 2}, ("augmentations that another version of PeKit drew",)),
        ],
    )
    def test_what_keeps_views_apart_is_named(self, manifest: views.Manifest, change: dict, words: tuple) -> None:
        difference = manifest.difference(replace(manifest, **change))
        assert difference is not None and all(word in difference for word in words)

    def test_what_does_not_matter(self, manifest: views.Manifest) -> None:
        assert manifest.difference(replace(manifest, versions={"torch": "3"})) is None
        assert manifest.difference(replace(manifest, seed=1, augmentation=2, n_augment=0)) is None  # no draw
        assert replace(manifest, n_augment=0).difference(replace(manifest, seed=1, augmentation=2)) is None
        assert manifest.difference(replace(manifest, n_augment=12)) is None  # nine of them are there

    @pytest.mark.parametrize(
        "change",
        [
            *({"models": models} for models in (None, "x", [], {}, {"features": None}, {"features": {"source": "a"}})),
            {"models": {"features": {"source": "a", "fingerprint": "b"}, "grounding": {"source": "a"}}},
            {"n_augment": None},
            {"more": 1},
        ],
    )
    def test_a_damaged_manifest_is_named(self, tmp_path: Path, manifest: views.Manifest, change: dict) -> None:
        for content in ("{", "[]", json.dumps(manifest.__dict__ | change)):
            (tmp_path / "manifest.json").write_text(content)
            with pytest.raises(UserError, match=r"manifest\.json is damaged or of another version"):
                views.read_manifest(tmp_path)
