"""Which patches belong to a region, their mean, and DINOv2's grid: against drawn masks, loops and a plain call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from conftest import picture
from PIL import Image
from transformers import AutoImageProcessor

from pekit import features
from pekit.hub import ROLES, find_checkpoint
from pekit.records import Concept, Gallery, UserError
from pekit.retrieval import Matcher
from pekit.sample.models.features import WIDTH

SIZE, PATCH, GRID = 518, 14, 37
CPU = torch.device("cpu")


def random_boxes(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Float boxes of every size, many of them leaving the picture."""
    rng = np.random.default_rng(seed)
    centre, extent = rng.uniform(0, size, (count, 2)), rng.uniform(0, size, (count, 2)) * rng.uniform(0, 1, (count, 1))
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=1).astype(np.float32)


class TestBoxes:
    @pytest.mark.parametrize(
        ("box", "expected"),
        [
            ((10.9, 20.1, 30.99, 40.5), (10, 20, 30, 40)),  # truncated, not rounded
            ((-0.7, -5.2, 100.0, 50.0), (0, 0, 100, 50)),  # clamped, not wrapped round
            ((500.2, 510.0, 530.0, 600.0), (500, 510, 518, 518)),
            ((-30.0, 10.0, -2.0, 20.0), (0, 10, 0, 20)),  # wholly outside: nothing
        ],
    )
    def test_truncated_and_clamped(self, box: tuple, expected: tuple) -> None:
        np.testing.assert_array_equal(features.pixel_boxes(np.array([box], dtype=np.float32), SIZE), [expected])

    def test_rectangles_hold_the_patches_of_the_drawn_box(self) -> None:
        boxes = np.concatenate([random_boxes(60), [[14, 14, 15, 15], [15, 15, 28, 28], [504, 504, 518, 518]]])
        rectangles = features.patch_rectangles(features.pixel_boxes(boxes, SIZE), PATCH)
        places = np.arange(GRID * GRID, dtype=np.float32).reshape(GRID, GRID, 1)
        for box, member in zip(boxes, features.rectangle_members(rectangles, GRID), strict=True):
            expected = plain.patches(plain.box_mask(box, SIZE), places, PATCH).ravel()
            np.testing.assert_array_equal(places[member].ravel(), expected)

    def test_a_patch_counts_by_its_first_pixel_not_by_area(self) -> None:
        # all of patch (1, 1) but its first row and column; then that first pixel alone
        almost, corner = np.array([[15, 15, 28, 28]]), np.array([[14, 14, 15, 15]])
        assert not features.rectangle_members(features.patch_rectangles(almost, PATCH), GRID).any()
        [member] = features.rectangle_members(features.patch_rectangles(corner, PATCH), GRID)
        assert member.sum() == 1 and member[1, 1]

    def test_masks_are_sampled_at_first_pixels(self) -> None:
        masks = np.random.default_rng(1).random((2, SIZE, SIZE)) < 0.5
        found = features.sampled(masks, PATCH)
        assert found.shape == (2, GRID, GRID)
        for m in range(2):
            for i in range(GRID):
                for j in range(GRID):
                    assert found[m, i, j] == masks[m, PATCH * i, PATCH * j]


class TestPooling:
    @pytest.fixture(scope="class")
    def grid(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        common = torch.randn(1024, generator=generator)  # real patches have length 45 or so and much in common
        return torch.randn(GRID, GRID, 1024, generator=generator) + common

    def test_boxes_equal_the_plain_mean_at_full_size(self, grid: torch.Tensor) -> None:
        boxes = np.concatenate([random_boxes(300), [[15, 15, 20, 20], [0, 0, 518, 518], [490, 490, 540, 540]]])
        descriptors, which = features.pool_boxes(
            grid, features.patch_rectangles(features.pixel_boxes(boxes, SIZE), PATCH)
        )
        assert descriptors.dtype == torch.float32
        empty = 0
        for box, index in zip(boxes, which, strict=True):
            x0, y0, x1, y1 = (min(max(int(v), 0), SIZE) for v in box)
            cells = [
                grid[i, j]
                for i in range(GRID)
                for j in range(GRID)
                if x0 <= PATCH * j < x1 and y0 <= PATCH * i < y1
            ]  # fmt: skip
            if not cells:
                assert index == -1
                empty += 1
                continue
            expected = torch.stack(cells).double().mean(0)
            np.testing.assert_allclose(descriptors[index].numpy(), expected.numpy(), atol=1e-5)
        assert 0 < empty < 60

    def test_masks_equal_the_plain_mean(self, grid: torch.Tensor) -> None:
        members = np.random.default_rng(2).random((12, GRID, GRID)) < np.linspace(0, 1, 12)[:, None, None]
        members[5] = False
        descriptors, which = features.pool_masks(grid, members)
        for member, index in zip(members, which, strict=True):
            if not member.any():
                assert index == -1
                continue
            cells = [grid[i, j].double() for i in range(GRID) for j in range(GRID) if member[i, j]]
            np.testing.assert_allclose(descriptors[index].numpy(), torch.stack(cells).mean(0).numpy(), atol=1e-5)
        assert which[0] == -1 and which[5] == -1

    @pytest.mark.parametrize("count", [0, 3])
    def test_nothing_to_pool(self, grid: torch.Tensor, count: int) -> None:
        descriptors, which = features.pool_boxes(grid, np.zeros((count, 4), dtype=np.int64))
        assert descriptors.shape == (0, 1024) and list(which) == [-1] * count
        descriptors, which = features.pool_masks(grid, np.zeros((count, GRID, GRID), dtype=bool))
        assert descriptors.shape == (0, 1024) and list(which) == [-1] * count

    def test_descriptors_are_in_the_order_of_the_regions_listed(self, grid: torch.Tensor) -> None:
        rectangles = np.array([[5, 5, 9, 9], [3, 3, 3, 8], [0, 0, 2, 2], [5, 5, 9, 9], [1, 0, 2, 2], [0, 0, 2, 2]])
        expected = [0, -1, 1, 0, 2, 1]
        descriptors, which = features.pool_boxes(grid, rectangles)
        assert list(which) == expected and len(descriptors) == 3
        members = features.rectangle_members(rectangles, GRID)
        of_masks, which = features.pool_masks(grid, members)
        assert list(which) == expected
        np.testing.assert_allclose(of_masks.numpy(), descriptors.numpy(), atol=1e-5)

    def test_equal_patches_in_two_places_are_a_tie_for_the_first_listed(self) -> None:
        grid = torch.zeros(GRID, GRID, 1024)
        grid[4, 20] = grid[4, 6] = torch.linspace(-1, 2, 1024)
        rectangles = np.array([[20, 4, 21, 5], [6, 4, 7, 5]])
        concepts = (Concept("mug", "mug.", "mug"),)
        known = Gallery(concepts, grid[4, 6].numpy()[None, None], np.ones((1, 1), dtype=bool), ("mug/0_0.pt",))
        for listed in (rectangles, rectangles[::-1]):
            descriptors, which = features.pool_boxes(grid, listed)
            best = Matcher(known, torch.device("cpu")).best(descriptors).of_proposals(which)
            assert best.proposals[0] == 0

    def test_equal_patches_give_equal_descriptors_bit_for_bit(self, grid: torch.Tensor) -> None:
        boxes = np.array([[29, 29, 50, 50], [100, 30, 140, 90], [30, 35, 56, 49], [40, 42, 43, 43]])
        descriptors, which = features.pool_boxes(grid, features.patch_rectangles(boxes, PATCH))
        assert which[0] == which[2]  # both hold patch (3, 3) alone
        np.testing.assert_allclose(descriptors[which[0]].numpy(), grid[3, 3].numpy(), atol=1e-5)
        np.testing.assert_array_equal(descriptors[which[0]].numpy(), descriptors[which[3]].numpy())

    def test_patches_come_in_reading_order(self, grid: torch.Tensor) -> None:
        member = np.zeros((GRID, GRID), dtype=bool)
        member[2, 5] = member[2, 7] = member[30, 1] = True
        expected = torch.stack([grid[2, 5], grid[2, 7], grid[30, 1]])
        np.testing.assert_array_equal(features.patches_under(grid, member), expected.numpy())


class TestPictureInput:
    @pytest.mark.parametrize("role", ["grounding", "masks", "features"])
    def test_numbers_are_the_processors_own(self, models: Path, role: str) -> None:
        prepare = features.PictureInput(find_checkpoint(str(models / role), *ROLES[role]))
        processor = AutoImageProcessor.from_pretrained(models / role, backend="pil")
        rng = np.random.default_rng(0)
        pictures = [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(2)]
        prepared = [prepare(image) for image in pictures]
        assert {one.dtype for one in prepared} == {torch.uint8}
        found = features.normalised(prepared, prepare.levels)
        for image, values in zip(pictures, found, strict=True):
            expected = processor(images=image, return_tensors="np")["pixel_values"][0]
            np.testing.assert_array_equal(values.numpy(), expected.astype(np.float32))
        assert torch.equal(features.normalised(prepared, prepare.levels.bfloat16()), found.bfloat16())

    def test_a_processor_that_does_more_is_refused(self, models: Path, tmp_path: Path) -> None:
        """Padding comes after normalising: its zeros are no value of a picture."""
        shutil.copytree(models / "masks", tmp_path, dirs_exist_ok=True)
        file = tmp_path / "processor_config.json"
        stated = json.loads(file.read_text())
        stated["image_processor"]["pad_size"] = {"height": 300, "width": 300}
        file.write_text(json.dumps(stated))
        with pytest.raises(UserError, match=r"--sam_model .*: its image processor does more"):
            features.PictureInput(find_checkpoint(str(tmp_path), *ROLES["masks"]))


class TestDino:
    @pytest.fixture(scope="class")
    def dino(self, models: Path) -> features.PatchFeatures:
        return features.PatchFeatures(str(models / "features"), SIZE, CPU, torch.float32)

    def test_grid_equals_a_plain_call(self, dino: features.PatchFeatures, models: Path) -> None:
        pictures = [picture(seed, (SIZE, SIZE)) for seed in (1, 2)]
        grids = dino(torch.stack([dino.prepare(image) for image in pictures]))
        assert grids.shape == (2, GRID, GRID, WIDTH) and grids.dtype == torch.float32
        reference = plain.Models(models)
        for image, grid in zip(pictures, grids, strict=True):
            np.testing.assert_allclose(grid.numpy(), reference.grid(image), atol=2e-5)

    def test_pixels_are_normalised_by_imagenet_and_not_resized(self, dino: features.PatchFeatures) -> None:
        image = picture(3, (SIZE, SIZE))
        expected = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        (found,) = features.normalised([dino.prepare(image)], dino.levels)
        np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-5)

    def test_registers_are_no_patches(self, tmp_path: Path, models: Path) -> None:
        from transformers import AutoImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

        torch.manual_seed(0)
        config = Dinov2WithRegistersConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, num_register_tokens=4
        )
        model = Dinov2WithRegistersModel(config).eval()
        model.save_pretrained(tmp_path)
        AutoImageProcessor.from_pretrained(models / "features", backend="pil").save_pretrained(tmp_path)
        dino = features.PatchFeatures(str(tmp_path), 112, CPU, torch.float32)
        assert (dino.grid, dino.width, dino.patch) == (7, 24, 16)
        prepared = [dino.prepare(picture(4, (112, 112)))]
        with torch.no_grad():
            tokens = model(features.normalised(prepared, dino.levels)).last_hidden_state[0, 5:]
        np.testing.assert_allclose(dino(prepared)[0].reshape(49, 24).numpy(), tokens.numpy(), atol=1e-5)

    def test_a_side_that_patches_do_not_fill_is_refused(self, models: Path) -> None:
        with pytest.raises(UserError, match=r"--dino_img_size 520 .* 518"):
            features.PatchFeatures(str(models / "features"), 520, CPU, torch.float32)
