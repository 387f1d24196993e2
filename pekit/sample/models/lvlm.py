"""The sample LVLM: a small InternVL with its processor, untrained, in the format `from_pretrained` reads."""

from collections import defaultdict
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pekit.sample.drawing import CATEGORIES, COLOURS, PATTERNS
from pekit.sample.models.features import sine_positions

IMAGE_SIZE = 448
PATCH = 14
DOWNSAMPLE = 0.5
IMAGE_TOKENS = int((IMAGE_SIZE / PATCH * DOWNSAMPLE) ** 2)
VISION_WIDTH = 128
VISION_LAYERS = 6
TEXT_WIDTH = 128
NAMING_LAYERS = 3  # the text model's first ones, which find out which box a question is about
TEXT_LAYERS = NAMING_LAYERS + 3

PAD, START, END, IMAGE, IMAGE_START, IMAGE_END, VIDEO = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
    "<video>",
)
LETTERS = "ABCD"
ROLES = ("system", "user", "assistant", "USER", "ASSISTANT", "image")
WORDS = """
A B a all an and animal answer any appear are at be below beside big bottom box boxes by called can centre
color colors colour colours count describe do does down each enclosed entity following for from gray grey has
have here how image in inside is it its kind left main many me mention middle more most name named no not
number object objects of on one only option or other pattern patterned personal photo pick picture question
right say see seen shape shown side some sort stand surface texture than that the their there thing things
this three to top total two type up upper lower very view visible what where which with you s sks zero four
five six seven eight nine ten pink purple 0 1 2 3 4 5 6 7 8 9 10 11 12
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>\n' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def build_model(seed: int) -> InternVLForConditionalGeneration:
    """Builds the untrained model from random weights of a seed."""
    tokenizer = build_tokenizer()
    # Initial deviations: the usual 0.02 suits wide models; in narrow ones it leaves attention flat for long.
    ids = tokenizer.get_vocab()
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            hidden_size=VISION_WIDTH,
            intermediate_size=2 * VISION_WIDTH,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=4,
            attention_bias=True,
            layer_scale_init_value=0.3,
            layer_norm_eps=1e-6,
            initializer_range=0.08,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
        ),
        image_token_id=ids[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=DOWNSAMPLE,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for number, layer in enumerate(model.model.language_model.layers):
            # Attention that starts by looking at what is alike and handing it on reads words off a picture much sooner.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            if number < NAMING_LAYERS:  # these change little, so they begin by changing nothing
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            else:
                layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
        model.get_input_embeddings().get_parameter("weight").copy_(spelled_embeddings(tokenizer, seed))
        embeddings = model.model.vision_tower.embeddings
        # Patches that know from the start where they are learn to look at their neighbours far sooner.
        embeddings.position_embeddings[:, 1:] = sine_positions(IMAGE_SIZE // PATCH, VISION_WIDTH)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ids[END], pad_token_id=ids[PAD])
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the sample's words whole and spells all else in bytes, so that any text survives it.

    Returns:
        The tokenizer, with the special tokens InternVL's processor asks for.
    """
    words = dict.fromkeys(word for phrase in (*CATEGORIES, *COLOURS, *PATTERNS) for word in phrase.split())
    lower = [*ROLES, *WORDS.split(), *words]
    known = dict.fromkeys([*lower, *(word.capitalize() for word in lower), *(word.upper() for word in words)])
    # A letter and its option are one token: a reply is then a word that fits the picture and stands in the question.
    options = [f"{letter}.{word}" for letter in LETTERS for word in dict.fromkeys([*WORDS.split(), *words])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*alphabet, *known, *options, *("Ġ" + word for word in [*known, *options])])
    specials = (PAD, START, END, IMAGE, IMAGE_START, IMAGE_END, VIDEO)
    # Without merges a word is one token when the vocabulary holds it and single bytes otherwise.
    tokenizer = Tokenizer(BPE({piece: k for k, piece in enumerate(pieces)}, [], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r" ?[A-D]\.\w+| ?\w+| ?[^\w\s]|\s"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE,
            "video_token": VIDEO,
        },
    )


def spelled_embeddings(tokenizer: PreTrainedTokenizerFast, seed: int) -> torch.Tensor:
    """First token embeddings, alike for the spellings of one word, so that what is learned of one holds for all.

    "red", " red" and "RED" start as the vector of the word with a little noise, "A.red" as the sum of the vectors of
    the word, of the letter and of the pair.

    Args:
        tokenizer: of `build_tokenizer`.
        seed: of the random vectors.

    Returns:
        (vocabulary, TEXT_WIDTH).
    """
    generator = torch.Generator().manual_seed(seed)
    vectors: dict[str, torch.Tensor] = defaultdict(lambda: 0.1 * torch.randn(TEXT_WIDTH, generator=generator))
    table = 0.03 * torch.randn(len(tokenizer), TEXT_WIDTH, generator=generator)
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        letter, dot, word = token.removeprefix("Ġ").partition(".")
        if dot and word:
            table[index] += vectors[letter] + vectors[word.lower()] + vectors[f"{letter}.{word}"]
        else:
            table[index] += vectors[token.removeprefix("Ġ") if token in LETTERS else token.removeprefix("Ġ").lower()]
    return table


def build_processor() -> InternVLProcessor:
    """Builds the processor: the tokenizer above, the whole photo squashed to one tile."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pixels: dict[str, Any] = {
        "size": size,
        "resample": 2,
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=False, **pixels),
        tokenizer=build_tokenizer(),
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )
