"""The sample SAM: a small SamModel and its processor, untrained, in the format `from_pretrained` reads."""

import torch
from transformers import (
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from pekit.sample.models.features import sine_positions

IMAGE_SIZE = 256
PATCH_SIZE = 8
WIDTH = 64
DECODER_WIDTH = 96
INITIAL_DEVIATION = 0.08  # the defaults suit far wider layers, or weights to be loaded


def build_model(seed: int) -> SamModel:
    """Builds the untrained model from random weights of a seed."""
    vision = SamVisionConfig(
        hidden_size=WIDTH,
        output_channels=DECODER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=INITIAL_DEVIATION,
        use_rel_pos=False,
        window_size=8,
        global_attn_indexes=[1, 3],
        num_pos_feats=DECODER_WIDTH // 2,
        mlp_ratio=2.0,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=DECODER_WIDTH, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, mask_input_channels=8
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=DECODER_WIDTH, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=DECODER_WIDTH
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
        initializer_range=INITIAL_DEVIATION,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = SamModel(config)
        # As initialised, its deviation of half the encoder's width makes neighbouring places look unrelated.
        model.shared_image_embedding.positional_embedding.normal_()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):  # mask tokens, and what tells the two corners of a box apart
                module.weight.normal_(std=0.5)
        side = IMAGE_SIZE // PATCH_SIZE
        places = sine_positions(side, WIDTH).reshape(1, side, side, WIDTH)
        model.vision_encoder.pos_embed = torch.nn.Parameter(places)
    return model


def build_processor() -> SamProcessor:
    """Builds the processor: the longer side to 256 px, masks of 128 x 128 cells."""
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    low = IMAGE_SIZE // PATCH_SIZE * 4
    return SamProcessor(
        SamImageProcessor(
            size={"longest_edge": IMAGE_SIZE},
            pad_size=square,
            mask_size={"longest_edge": low},
            mask_pad_size={"height": low, "width": low},
        )
    )
