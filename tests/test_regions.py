"""Grounding DINO's boxes and SAM's masks against plain calls of the library, one picture at a time."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import transformers
from conftest import picture
from PIL import Image

from pekit import regions
from pekit.cli import SAMPLE_CHECKPOINTS
from pekit.features import normalised
from pekit.records import Regions, UserError
from pekit.sample.models.masks import IMAGE_SIZE

SIZE = 518
CPU = torch.device("cpu")
PROMPTS = ("mug cup.", "red striped teddy bear.", "zzz unknown words lamp.", "kite.")


@pytest.fixture(scope="module")
def reference(models: Path) -> plain.Models:
    return plain.Models(models)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(seed, (SIZE, SIZE)) for seed in (1, 2, 3, 4)]


class TestGrounder:
    @pytest.fixture(scope="class")
    def grounder(self, models: Path) -> regions.Grounder:
        return regions.Grounder(str(models / "grounding"), SIZE, CPU, torch.float32)

    def pixels(self, grounder: regions.Grounder, pictures: list[Image.Image]) -> torch.Tensor:
        return torch.stack([grounder.prepare(image) for image in pictures])

    def test_the_top_box_of_each_prompt(
        self, grounder: regions.Grounder, pictures: list, reference: plain.Models
    ) -> None:
        found = grounder.ground(self.pixels(grounder, pictures), PROMPTS)
        tops = set()
        for image, prompt, region in zip(pictures, PROMPTS, found, strict=True):
            boxes, scores = reference.boxes(image, prompt)
            best = int(scores.argmax())
            tops.add(best)
            assert len(region) == 1 and region.masks is None
            np.testing.assert_allclose(region.boxes_xyxy[0], boxes[best], atol=0.02)  # of 518 px
            np.testing.assert_allclose(region.scores[0], scores[best], atol=1e-5)
        assert len(tops) > 1  # not simply the first of the list

    def test_a_name_longer_than_the_model_reads(self, grounder: regions.Grounder, pictures: list) -> None:
        fits = "!" * (grounder.model.config.max_text_len - 3) + "."  # beside what begins and ends each prompt
        assert len(grounder.ground(self.pixels(grounder, pictures[:1]), [fits])) == 1
        with pytest.raises(UserError, match=r"'!+\.' is more than the \d+ words .* shorter name"):
            grounder.ground(self.pixels(grounder, pictures[:2]), ["mug.", f"!{fits}"])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_on_a_cpu_it_runs_in_32_bits(
        self, models: Path, pictures: list, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One photo in 16 bits would be looked at through memory that is not its own."""
        halved = regions.Grounder(str(models / "grounding"), SIZE, CPU, dtype)
        assert "Grounding DINO runs in float32" in caplog.text
        assert {weights.dtype for weights in halved.model.parameters()} == {torch.float32}
        whole = regions.Grounder(str(models / "grounding"), SIZE, CPU, torch.float32)
        pixels = self.pixels(whole, pictures[:1])
        (one,), (other,) = (grounder.propose(pixels) for grounder in (halved, whole))
        np.testing.assert_array_equal(one.scores, other.scores)

    def test_mm_grounding_dino_is_a_model_of_its_own(self, models: Path, tmp_path: Path, pictures: list) -> None:
        """Its heads scale and shift the logits; in the other class its scores would be others."""
        shutil.copytree(models / "grounding", tmp_path, dirs_exist_ok=True)
        stated = json.loads((tmp_path / "config.json").read_text())
        torch.manual_seed(0)
        model = transformers.MMGroundingDinoForObjectDetection(
            transformers.MMGroundingDinoConfig(**{k: v for k, v in stated.items() if k != "model_type"})
        ).eval()
        model.save_pretrained(tmp_path)
        grounder = regions.Grounder(str(tmp_path), SIZE, CPU, torch.float32)
        (found,) = grounder.ground(self.pixels(grounder, pictures[:1]), ["mug cup."])
        words = transformers.AutoTokenizer.from_pretrained(tmp_path)(["mug cup."], return_tensors="pt")
        with torch.no_grad():
            pixels = normalised(self.pixels(grounder, pictures[:1]), grounder.levels)
            scores = model(pixel_values=pixels, **words).logits.sigmoid().amax(-1)
        np.testing.assert_allclose(found.scores[0], float(scores.max()), atol=1e-6)

    def test_several_prompts_at_once_equal_one_by_one(self, grounder: regions.Grounder, pictures: list) -> None:
        pixels = self.pixels(grounder, pictures)
        together = grounder.ground(pixels, PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            (alone,) = grounder.ground(pixels[i : i + 1], [prompt])
            np.testing.assert_allclose(together[i].boxes_xyxy, alone.boxes_xyxy, atol=0.02)
            np.testing.assert_allclose(together[i].scores, alone.scores, atol=1e-5)

    def test_the_prompt_matters(self, grounder: regions.Grounder, pictures: list) -> None:
        pixels = self.pixels(grounder, pictures[:1])
        scores = {prompt: float(grounder.ground(pixels, [prompt])[0].scores[0]) for prompt in PROMPTS}
        assert len(set(scores.values())) == len(PROMPTS)

    def test_proposals_are_the_boxes_for_object_above_the_score(
        self, grounder: regions.Grounder, pictures: list, reference: plain.Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert regions.PROPOSAL_PROMPT == "object." and regions.PROPOSAL_SCORE == 0.01
        pixels = self.pixels(grounder, pictures)
        middle = float(np.median(reference.boxes(pictures[0], "object.")[1]))
        for threshold in (0.01, middle):  # an untrained model gives nothing as little as 0.01
            monkeypatch.setattr(regions, "PROPOSAL_SCORE", threshold)
            for image, region in zip(pictures, grounder.propose(pixels), strict=True):
                boxes, scores = reference.boxes(image, "object.")
                kept = scores > threshold
                np.testing.assert_allclose(region.boxes_xyxy, boxes[kept], atol=0.02)  # in the detector's order
                np.testing.assert_allclose(region.scores, scores[kept], atol=1e-5)
        assert 0 < len(region) < len(scores)

    def test_the_score_is_the_largest_sigmoid_over_tokens(
        self, grounder: regions.Grounder, pictures: list, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Known logits in place of the model's, from just below to just above the threshold."""
        logits = torch.full((1, 5, 4), -torch.inf)
        just = float(np.log(0.01 / 0.99))
        for q, peak in enumerate((just - 0.01, just + 0.01, -20.0, 3.0, 0.0)):
            logits[0, q, :3] = torch.tensor([peak - 1, peak, peak - 5])
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(5, 1) + torch.arange(5)[:, None] * 0.01

        class Output:
            pred_boxes = boxes[None]

        Output.logits = logits  # type: ignore[attr-defined]
        monkeypatch.setattr(type(grounder.model), "forward", lambda *a, **k: Output)
        (found,) = grounder.propose(self.pixels(grounder, pictures[:1]))
        expected = [1 / (1 + np.exp(-peak)) for peak in (just + 0.01, 3.0, 0.0)]
        np.testing.assert_allclose(found.scores, expected, atol=1e-6)
        centre, extent = boxes[[1, 3, 4], :2] * SIZE, boxes[[1, 3, 4], 2:] * SIZE
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)
        np.testing.assert_allclose(found.boxes_xyxy, corners.numpy(), atol=1e-3)
        (top,) = grounder.ground(self.pixels(grounder, pictures[:1]), ["mug."])
        np.testing.assert_allclose(top.boxes_xyxy, corners[1:2].numpy(), atol=1e-3)

        Output.logits = logits - 30  # type: ignore[attr-defined]
        (none,) = grounder.propose(self.pixels(grounder, pictures[:1]))
        assert len(none) == 0 and none.boxes_xyxy.shape == (0, 4)
        (top,) = grounder.ground(self.pixels(grounder, pictures[:1]), ["mug."])  # however low
        np.testing.assert_allclose(top.boxes_xyxy, corners[1:2].numpy(), atol=1e-3)


class TestSegmenter:
    @pytest.fixture(scope="class")
    def segmenter(self, models: Path) -> regions.Segmenter:
        return regions.Segmenter(str(models / "masks"), SIZE, CPU, torch.float32)

    BOXES = np.array(
        [[50.7, 60.2, 300.9, 410.5], [-20.0, 100.0, 200.3, 530.0], [300, 20, 310, 30], [0, 0, 518, 518]],
        dtype=np.float32,
    )

    def test_the_mask_of_best_predicted_iou(
        self, segmenter: regions.Segmenter, pictures: list, reference: plain.Models
    ) -> None:
        pixels = torch.stack([segmenter.prepare(image) for image in pictures])
        found = segmenter.cut(pixels, self.BOXES)
        assert found.shape == (4, SIZE, SIZE) and found.dtype == bool
        telling = 0
        for image, box, mask in zip(pictures, self.BOXES, found, strict=True):
            masks, ious = reference.three_masks(image, box)
            best = int(ious.argmax())
            assert (mask != masks[best]).mean() < 1e-4
            telling += any((mask != masks[other]).mean() > 0.01 for other in range(3) if other != best)
        assert telling  # another of the three would have been seen

    def test_a_batch_equals_one_by_one(self, segmenter: regions.Segmenter, pictures: list) -> None:
        pixels = torch.stack([segmenter.prepare(image) for image in pictures])
        together = segmenter.cut(pixels, self.BOXES)
        for i in range(4):
            alone = segmenter.cut(pixels[i : i + 1], self.BOXES[i : i + 1])
            assert (together[i] != alone[0]).mean() < 1e-4

    def test_the_box_matters_unrounded(self, segmenter: regions.Segmenter, pictures: list) -> None:
        """The box given to the model is neither truncated nor clamped."""
        given = []

        def watch(module: object, args: tuple, kwargs: dict) -> None:
            given.append(kwargs["input_boxes"])

        handle = segmenter.model.register_forward_pre_hook(watch, with_kwargs=True)
        segmenter.cut(segmenter.prepare(pictures[0])[None], self.BOXES[1:2])
        handle.remove()
        np.testing.assert_allclose(given[0].numpy().reshape(4), self.BOXES[1] * IMAGE_SIZE / SIZE, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_boxes_stay_exact_in_16_bits(self, models: Path, pictures: list, dtype: torch.dtype) -> None:
        """Numbers up to 1024 px of 8 significant bits would be 4 px off."""
        segmenter = regions.Segmenter(str(models / "masks"), SIZE, CPU, dtype)
        given, scaled = [], []
        encoder = segmenter.model.prompt_encoder
        encoder.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs["input_boxes"]),
                                          with_kwargs=True)  # fmt: skip
        encoder.shared_embedding.register_forward_hook(lambda module, args, output: scaled.append(output.dtype))
        masks = segmenter.cut(segmenter.prepare(pictures[0])[None], self.BOXES[:1])
        np.testing.assert_allclose(given[0].numpy().reshape(4), self.BOXES[0] * IMAGE_SIZE / SIZE, rtol=1e-6)
        assert scaled[0] == dtype and masks.shape == (1, SIZE, SIZE)  # the model itself stays in 16 bits

    def test_automatic_masks_that_are_too_small_are_dropped(
        self, segmenter: regions.Segmenter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        masks = np.zeros((4, SIZE, SIZE), dtype=bool)
        masks[0, 10:60, 20:60] = True  # 2000 px
        masks[1, 10:60, 20:60] = True
        masks[1, 10, 20] = False  # 1999 px
        masks[2, 100:200, 100:200] = True
        asked = {}

        def pipeline(*args: object, **kwargs: object) -> object:
            def generate(image: object, **options: float) -> dict:
                asked.update(options)
                return {"masks": list(masks), "scores": torch.tensor([0.97, 0.99, 0.96, 0.98])}

            return generate

        monkeypatch.setattr("transformers.pipeline", pipeline)
        found = segmenter.everything(Image.new("RGB", (SIZE, SIZE)), 2000)
        np.testing.assert_array_equal(found.masks, masks[[0, 2]])
        np.testing.assert_array_equal(found.boxes_xyxy, [[20, 10, 60, 60], [100, 100, 200, 200]])
        np.testing.assert_allclose(found.scores, [0.97, 0.96], atol=1e-6)
        assert asked["pred_iou_thresh"] == 0.95
        assert len(segmenter.everything(Image.new("RGB", (SIZE, SIZE)), 0)) == 3  # an empty mask is none

    def test_automatic_masks_through_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The shipped checkpoint's: an untrained one is sure of none."""
        segmenter = regions.Segmenter(str(SAMPLE_CHECKPOINTS / "masks"), SIZE, CPU, torch.float32)
        whole = transformers.pipeline

        def coarse(*args: object, **kwargs: object) -> object:  # 16 points in place of 1024
            return partial(whole(*args, **kwargs), points_per_crop=4)

        monkeypatch.setattr("transformers.pipeline", coarse)
        image = Image.new("RGB", (SIZE, SIZE), (220, 220, 220))
        image.paste((212, 36, 38), (150, 120, 400, 360))
        found = segmenter.everything(image, 100)
        assert found.masks is not None and found.masks.shape == (1, SIZE, SIZE) and found.scores[0] >= 0.95
        np.testing.assert_allclose(found.boxes_xyxy, [[150, 120, 400, 360]], atol=6)
        assert (found.masks.sum((1, 2)) >= 100).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_automatic_masks_in_16_bits(
        self, models: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = transformers.pipeline

        def all_of_four(*args: object, **kwargs: object) -> object:
            return partial(whole(*args, **kwargs), points_per_crop=2, stability_score_thresh=-1.0)

        monkeypatch.setattr("transformers.pipeline", all_of_four)
        monkeypatch.setattr(regions, "AUTOMATIC_MASK_IOU", -100.0)
        found = regions.Segmenter(str(models / "masks"), SIZE, CPU, dtype).everything(picture(5, (SIZE, SIZE)), 1)
        assert len(found) > 0 and found.scores.dtype == np.float32


def test_regions_check_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        Regions(np.zeros((3, 4)), np.zeros(2))
    with pytest.raises(ValueError, match=r"\(2, S, S\)"):
        Regions(np.zeros((2, 4)), np.zeros(2), np.zeros((3, 5, 5), dtype=bool))
