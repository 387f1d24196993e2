"""The sample Grounding DINO: the real architecture two hundred times smaller, knowing a few dozen words."""

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoEncoderLayer

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS

SIDE = 128
WIDTH = 64
QUERIES = 48
MAX_TEXT_LENGTH = 128
# Grounding DINO has these ids written into its code; the rest of the vocabulary is laid out around them.
_FIXED_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
_PLAIN_WORDS = ("object", "a", "the", "my", "and", "with", "_", "'", "s")


def build_tokenizer() -> BertTokenizer:
    """Builds the tokenizer: whole words, lower case; a word it does not know becomes [UNK]."""
    names = " ".join((*CATEGORIES, *COLOURS, *PATTERNS)).replace("-", " ").lower()
    words = list(dict.fromkeys((*_PLAIN_WORDS, *names.split())))
    vocabulary = {f"[unused{index}]": index for index in range(_FIXED_IDS["?"] + 1)}
    for word, index in (*_FIXED_IDS.items(), *zip(words, range(200, 200 + len(words)), strict=True)):
        del vocabulary[f"[unused{index}]"]
        vocabulary[word] = index
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=ordered, do_lower_case=True, model_max_length=MAX_TEXT_LENGTH)


def build_processor() -> GroundingDinoProcessor:
    """Builds the processor: squash to 128 px, ImageNet mean and deviation, the tokenizer above."""
    image_processor = GroundingDinoImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return GroundingDinoProcessor(image_processor=image_processor, tokenizer=build_tokenizer())


def build_model(seed: int) -> GroundingDinoForObjectDetection:
    """Builds the untrained model.

    Args:
        seed: of the random weights.

    Returns:
        A model in float32 whose scores are spread around 0.5, ready to be trained.
    """
    backbone = ConvNextConfig(
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 4],
        num_stages=3,
        layer_scale_init_value=1.0,
        image_size=SIDE,
        out_features=["stage2", "stage3"],  # type: ignore[call-arg]  # renamed on its way through the real signature
    )
    text = BertConfig(
        vocab_size=_FIXED_IDS["?"] + 1,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=MAX_TEXT_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=QUERIES,
        d_model=WIDTH,
        encoder_layers=1,
        encoder_ffn_dim=4 * WIDTH,
        encoder_attention_heads=4,
        decoder_layers=2,
        decoder_ffn_dim=4 * WIDTH,
        decoder_attention_heads=4,
        num_feature_levels=3,
        max_text_len=MAX_TEXT_LENGTH,
        dropout=0.0,
        fusion_droppath=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GroundingDinoForObjectDetection(config)
    _soften(model)
    return model.eval()


@torch.no_grad()
def _soften(model: GroundingDinoForObjectDetection) -> None:
    # Scores are dot products of two layer-normed vectors: as initialised they start far out on the sigmoid. The
    # branches that mix picture and text start at 1e-4, meant for pretrained halves; here both halves are new.
    for layer in model.model.encoder.layers:
        assert isinstance(layer, GroundingDinoEncoderLayer)
        layer.text_enhancer_layer.layer_norm_after.weight.fill_(0.15)
        layer.fusion_layer.vision_param.fill_(0.3)
        layer.fusion_layer.text_param.fill_(0.3)
