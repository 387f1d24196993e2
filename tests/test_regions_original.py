"""SAM through transformers against segment-anything, its makers' own package, with the same weights."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from pekit import regions
from pekit.cli import SAMPLE_CHECKPOINTS

SIZE = 518
POINTS = 5
# parameters of transformers' SamModel, and what segment-anything calls them
NAMES = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"image_encoder\.layers\.", "image_encoder.blocks."),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"^shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"encoder\.point_embed\.", "encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d|iou_prediction_head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d|iou_prediction_head)\.proj_out", r"\1.layers.2"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"(transformer\.layers\.\d)\.layer_norm", r"\1.norm"),
)


@pytest.fixture(scope="module")
def segmenter() -> regions.Segmenter:
    """The shipped checkpoint's: an untrained one is sure of no mask."""
    return regions.Segmenter(str(SAMPLE_CHECKPOINTS / "masks"), SIZE, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def original(segmenter: regions.Segmenter) -> Sam:
    vision, prompts, decoder = (getattr(segmenter.model.config, f"{part}_config") for part in
                                ("vision", "prompt_encoder", "mask_decoder"))  # fmt: skip
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=vision.num_hidden_layers,
            embed_dim=vision.hidden_size,
            img_size=vision.image_size,
            mlp_ratio=vision.mlp_ratio,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=vision.num_attention_heads,
            patch_size=vision.patch_size,
            qkv_bias=True,
            use_rel_pos=vision.use_rel_pos,
            global_attn_indexes=vision.global_attn_indexes,
            window_size=vision.window_size,
            out_chans=vision.output_channels,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompts.hidden_size,
            image_embedding_size=(prompts.image_embedding_size,) * 2,
            input_image_size=(prompts.image_size,) * 2,
            mask_in_chans=prompts.mask_input_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=decoder.num_hidden_layers,
                embedding_dim=decoder.hidden_size,
                mlp_dim=decoder.mlp_dim,
                num_heads=decoder.num_attention_heads,
            ),
            transformer_dim=decoder.hidden_size,
            iou_head_depth=decoder.iou_head_depth,
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()
    weights = segmenter.model.state_dict()
    del weights["prompt_encoder.shared_embedding.positional_embedding"]  # the same tensor once more
    for pattern, name in NAMES:
        weights = {re.sub(pattern, name, key): tensor for key, tensor in weights.items()}
    sam.load_state_dict(weights)
    return sam


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Three boxes on grey, one of them cut by the border."""
    image = Image.new("RGB", (SIZE, SIZE), (220, 220, 220))
    image.paste((212, 36, 38), (150, 120, 400, 360))
    image.paste((30, 60, 200), (20, 400, 160, 500))
    image.paste((20, 150, 60), (430, 0, 518, 100))
    return image


@pytest.mark.parametrize(
    "box", [(140, 110, 410, 370), (10.4, 390.7, 171.2, 511.9), (420, -10, 530, 110), (150, 120, 275, 360)]
)
def test_the_mask_cut_from_a_box(
    segmenter: regions.Segmenter, original: Sam, picture: Image.Image, box: tuple[float, ...]
) -> None:
    predictor = SamPredictor(original)
    predictor.set_image(np.asarray(picture))
    masks, ious, _ = predictor.predict(box=np.array(box, dtype=np.float32), multimask_output=True)
    cut = segmenter.cut([segmenter.prepare(picture)], np.array([box], dtype=np.float32))
    assert masks[ious.argmax()].sum() > 5000
    assert (cut[0] != masks[ious.argmax()]).sum() <= 5  # numbers next to zero may round to either side


@pytest.mark.parametrize(("least_iou", "stability", "at_least"), [(0.95, 0.95, 1), (0.5, 0.5, 5)])
def test_automatic_masks(
    segmenter: regions.Segmenter,
    original: Sam,
    picture: Image.Image,
    least_iou: float,
    stability: float,
    at_least: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def coarse(*args: object, **kwargs: object) -> object:  # in place of 32 by 32 points
        whole = transformers.pipelines.pipeline(*args, **kwargs)
        return partial(whole, points_per_crop=POINTS, stability_score_thresh=stability)

    monkeypatch.setattr("transformers.pipeline", coarse)
    monkeypatch.setattr("pekit.regions.AUTOMATIC_MASK_IOU", least_iou)
    generator = SamAutomaticMaskGenerator(original, POINTS, pred_iou_thresh=least_iou, stability_score_thresh=stability)
    expected = generator.generate(np.asarray(picture))
    expected.sort(key=lambda mask: -mask["predicted_iou"])
    found = segmenter.everything(picture, 0)
    assert found.masks is not None and len(found) == len(expected) >= at_least
    np.testing.assert_allclose(found.scores, [mask["predicted_iou"] for mask in expected], atol=1e-4)
    for ours, theirs in zip(found.masks, expected, strict=True):
        assert (ours != theirs["segmentation"]).sum() <= 5
