"""LVLMs: the released wrap, local models of several architectures, served ones behind real HTTP."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Shared, picture
from PIL import Image
from vqa_fixtures import (
    NO_COMPLETIONS,
    SECRET,
    ChatServer,
    build_llava,
    build_lvlm_folder,
    build_qwen_vl,
    images_of,
    prompt_of,
)

from pekit.chat import Chat, ChatError, Patience, concurrently
from pekit.endpoint import Endpoint, host_of
from pekit.lvlm import LocalLvlm, native_port, open_lvlm, placement
from pekit.lvlm_interface import IMAGE, LvlmSettings, Request, wrap
from pekit.lvlm_served import ServedLvlm
from pekit.records import UserError
from pekit.sample.models.lvlm import IMAGE_SIZE, build_tokenizer

QUICK = Patience(attempts=3, first_wait=0.01, timeout=5)
PROMPTS = ["What colour is it?", "Is the thing in the blue box on the left side? A.yes or B.no", "Why?"]


@pytest.fixture(scope="module")
def internvl(shared: Shared) -> Path:
    return shared("vqa-internvl", build_lvlm_folder)


def loaded(folder: Path, **settings: Any) -> LocalLvlm:
    lvlm = LocalLvlm(LvlmSettings(str(folder), device="cpu", **settings))
    lvlm.load()
    return lvlm


def replies(lvlm: Any, requests: list[Request]) -> list[str | None]:
    texts = {request.tag: reply.text for request, reply in lvlm.answers(requests)}
    return [texts[request.tag] for request in requests]


def photo_requests(prompts: list[str] = PROMPTS) -> list[Request]:
    return [Request(n, picture(n, (80 + 40 * n, 60)), prompt) for n, prompt in enumerate(prompts)]


# --- wrap ---


@pytest.mark.parametrize(
    ("style", "with_image", "line_break", "expected"),
    [
        ("released", True, "\n", ["USER: ", IMAGE, "\nWhy?\nASSISTANT:"]),
        ("released", True, "", ["USER: ", IMAGE, "Why?\nASSISTANT:"]),
        ("released", False, "\n", ["USER: Why?\nASSISTANT:"]),
        ("plain", True, "\n", [IMAGE, "Why?"]),
        ("plain", False, "\n", ["Why?"]),
    ],
)
def test_wrap(style: str, with_image: bool, line_break: str, expected: list) -> None:
    assert wrap("Why?", style, with_image, line_break) == expected


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("OpenGVLab/InternVL3-14B", "OpenGVLab/InternVL3-14B-hf"),
        ("OpenGVLab/InternVL3-1B-Instruct", "OpenGVLab/InternVL3-1B-Instruct-hf"),
        ("OpenGVLab/InternVL3-14B-hf", "OpenGVLab/InternVL3-14B-hf"),
        ("OpenGVLab/InternVL3_5-8B", "OpenGVLab/InternVL3_5-8B-HF"),
        ("OpenGVLab/InternVL3_5-8B-HF", "OpenGVLab/InternVL3_5-8B-HF"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("me/InternVL3-14B", "me/InternVL3-14B"),
    ],
)
def test_native_ports(name: str, port: str) -> None:
    assert native_port(name) == port


def test_the_published_id_is_looked_for_at_its_native_port(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    asked: list[str] = []

    def from_pretrained(name: str, **options: Any) -> None:
        asked.append(name)
        raise OSError("not here")

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    for trusted in (False, True):
        with pytest.raises(UserError, match="--vlm_model OpenGVLab/InternVL3-14B"):
            LocalLvlm(LvlmSettings("OpenGVLab/InternVL3-14B", device="cpu", trust_remote_code=trusted))
    assert asked == ["OpenGVLab/InternVL3-14B-hf"] * 2


def test_without_network_it_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would repeat its request for half a minute."""
    from transformers import AutoConfig

    def nobody(*args: Any, **options: Any) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr("pekit.hub.get_hf_file_metadata", nobody)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **options: pytest.fail("asked again"))
    with pytest.raises(UserError, match=r"OpenGVLab/InternVL3-14B.*no answer from the hub.*give the folder"):
        open_lvlm(LvlmSettings("OpenGVLab/InternVL3-14B", device="cpu"))


def test_of_the_hub_the_id_the_port_and_the_commit_are_recorded(
    internvl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder stands in for the hub, whose answer names the commit."""
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    asked = []

    def stand_in(auto_class: Any) -> None:
        whole = auto_class.from_pretrained

        def from_pretrained(name: str, revision: str = "main", **options: Any) -> Any:
            if str(name) != str(internvl):  # not what the library reads on its own
                asked.append((auto_class, name, revision, options["trust_remote_code"]))
            return whole(internvl, **options)

        monkeypatch.setattr(auto_class, "from_pretrained", from_pretrained)

    for auto_class in (AutoConfig, AutoProcessor, AutoImageProcessor):
        stand_in(auto_class)
    monkeypatch.setattr("pekit.hub._fetched", lambda name, revision: internvl)
    commit = "c0ffee" + 34 * "0"
    monkeypatch.setattr("pekit.hub.cached_file", lambda name, *_, **__: f"hub/{name}/snapshots/{commit}/config.json")
    source, name = "OpenGVLab/InternVL3-1B@v1", "OpenGVLab/InternVL3-1B-hf"
    for trusted in (False, True):
        asked.clear()
        described = LocalLvlm(LvlmSettings(source, device="cpu", trust_remote_code=trusted))._checkpoint.described()
        assert asked == [
            (AutoConfig, name, "v1", trusted),
            (AutoProcessor, name, commit, trusted),
            (AutoImageProcessor, name, commit, trusted),
        ]
        assert (described["source"], described["name"], described["revision"]) == (source, name, commit)


def test_what_is_no_vision_language_model_is_named(internvl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "language"
    build_tokenizer().save_pretrained(folder)
    shutil.copy(internvl / "chat_template.jinja", folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match=r"--vlm_model .*language takes no images: give a vision-language model"):
        LocalLvlm(LvlmSettings(str(folder), device="cpu"))
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(UserError, match=r"--vlm_model .*unheard-of"):
        LocalLvlm(LvlmSettings(str(folder), device="cpu"))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"--vlm_model .*language has no config.json"):
        LocalLvlm(LvlmSettings(str(folder), device="cpu"))


# --- local models ---


def inputs_of(lvlm: LocalLvlm, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the model is given."""
    caught: dict = {}
    generate = lvlm._model.generate

    def spy(**inputs: Any) -> torch.Tensor:
        caught.update(inputs)
        return generate(**inputs)

    monkeypatch.setattr(lvlm._model, "generate", spy)
    list(lvlm.answers(requests))
    return caught


def test_internvl_is_given_the_released_wrap_inside_its_template(
    internvl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvlm = loaded(internvl, batch_size=2, max_new_tokens=2)
    given = inputs_of(lvlm, photo_requests(PROMPTS[:2]), monkeypatch)
    texts = [text.replace("<IMG_CONTEXT>", "") for text in lvlm._processor.batch_decode(given["input_ids"])]
    assert texts[1] == (
        "<|im_start|>user\nUSER: <img></img>\nIs the thing in the blue box on the left side? A.yes or B.no\nASSISTANT:"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    padding = "<|endoftext|>" * int((given["attention_mask"][0] == 0).sum())
    assert padding and texts[0] == (
        f"{padding}<|im_start|>user\nUSER: <img></img>\nWhat colour is it?\nASSISTANT:<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert given["do_sample"] is False and given["max_new_tokens"] == 2
    assert given["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)  # one tile each, whatever the aspect


def test_plain_style(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = loaded(internvl, prompt_style="plain", max_new_tokens=1)
    given = inputs_of(lvlm, photo_requests(PROMPTS[:1]), monkeypatch)
    text = lvlm._processor.batch_decode(given["input_ids"])[0].replace("<IMG_CONTEXT>", "")
    assert text == ("<|im_start|>user\n<img></img>\nWhat colour is it?<|im_end|>\n<|im_start|>assistant\n")


def test_a_system_message_stands_before_the_turn(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = loaded(internvl, prompt_style="plain", system_message="Be brief.", max_new_tokens=1)
    given = inputs_of(lvlm, photo_requests(PROMPTS[:1]), monkeypatch)
    text = lvlm._processor.batch_decode(given["input_ids"])[0].replace("<IMG_CONTEXT>", "")
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<img></img>\nWhat colour is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_one_tile_even_where_the_checkpoint_cuts_photos_up(internvl: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    folder = tmp_path / "cutting"
    shutil.copytree(internvl, folder)
    config = folder / "processor_config.json"
    config.write_text(config.read_text().replace('"crop_to_patches": false', '"crop_to_patches": true'))
    lvlm = loaded(folder, max_new_tokens=1)
    assert lvlm._processor.image_processor.crop_to_patches is True
    given = inputs_of(lvlm, [Request(0, picture(0, (400, 100)), "Why?")], monkeypatch)
    assert given["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_photo_is_prepared_as_by_hand(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(3, (300, 200))
    given = inputs_of(loaded(internvl, max_new_tokens=1), [Request(0, image, "Why?")], monkeypatch)
    resized = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(given["pixel_values"][0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def slow_reply(lvlm: LocalLvlm, request: Request, tokens: int) -> str:
    """Greedy decoding, one whole forward pass per token, no cache, no padding."""
    one_tile = {"crop_to_patches": False} if "InternVL" in type(lvlm._model).__name__ else {}
    inputs = lvlm._processor.apply_chat_template(
        [lvlm.conversation(request)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": one_tile},
    )
    ids, made = inputs["input_ids"], []
    for _ in range(tokens):
        with torch.no_grad():
            logits = lvlm._model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        token = int(logits[0, -1].argmax())
        if token == lvlm._processor.tokenizer.eos_token_id:
            break
        made.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        if "mm_token_type_ids" in inputs:  # what was made is text
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
    return lvlm._processor.tokenizer.decode(made, skip_special_tokens=True).strip()


def test_batched_replies_are_the_greedy_ones(internvl: Path) -> None:
    lvlm = loaded(internvl, batch_size=3, max_new_tokens=5)
    requests = photo_requests()
    assert replies(lvlm, requests) == [slow_reply(lvlm, request, 5) for request in requests]


def test_replies_are_greedy_whatever_the_checkpoint_asks_for(internvl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "penalising"
    shutil.copytree(internvl, folder)
    file = folder / "generation_config.json"
    stated = json.loads(file.read_text())
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "num_beams": 3, "min_new_tokens": 8}
    file.write_text(json.dumps({**stated, **sampling, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}))
    lvlm = loaded(folder, batch_size=3, max_new_tokens=8)
    requests = photo_requests()
    greedy = [slow_reply(lvlm, request, 8) for request in requests]
    assert any(len(set(reply.split())) < len(reply.split()) for reply in greedy)  # which a penalty would prevent
    assert replies(lvlm, requests) == greedy


def test_a_reply_ends_where_the_checkpoint_says_replies_end(
    internvl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvlm, request = loaded(internvl, max_new_tokens=8), photo_requests()[0]
    made: list[torch.Tensor] = []
    generate = lvlm._model.generate
    monkeypatch.setattr(lvlm._model, "generate", lambda **inputs: made.append(generate(**inputs)) or made[0])
    [whole] = replies(lvlm, [request])
    first = int(made[0][0, -8])
    folder = tmp_path / "ending"
    shutil.copytree(internvl, folder)
    file = folder / "generation_config.json"
    stated = json.loads(file.read_text())
    file.write_text(json.dumps({**stated, "eos_token_id": [stated["eos_token_id"], first]}))
    [cut] = replies(loaded(folder, max_new_tokens=8), [request])
    assert cut == lvlm._processor.tokenizer.decode([first]).strip() != whole


def test_a_reply_ends_where_the_tokenizer_says_texts_end(internvl: Path, tmp_path: Path) -> None:
    whole = loaded(internvl, max_new_tokens=8)
    [reply] = replies(whole, photo_requests()[:1])
    folder = tmp_path / "unsaid"
    shutil.copytree(internvl, folder)
    (folder / "generation_config.json").unlink()
    lvlm = LocalLvlm(LvlmSettings(str(folder), device="cpu", max_new_tokens=8))
    tokenizer = lvlm._processor.tokenizer
    second = tokenizer(reply)["input_ids"][1]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(second)
    lvlm.load()
    [cut] = replies(lvlm, photo_requests()[:1])
    assert cut and reply.startswith(cut) and len(tokenizer(cut)["input_ids"]) == 1


def test_a_template_of_the_tokenizer_alone_is_taken(internvl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    shutil.copytree(internvl, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    requests = photo_requests()
    assert replies(loaded(folder), requests) == replies(loaded(internvl), requests)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",  # takes texts only
        "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}",
        "{{ raise_exception('no such roles') }}",
        "{% for",
    ],
)
def test_a_template_that_takes_no_photos_is_named_before_weights_are_read(
    internvl: Path, tmp_path: Path, template: str
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(internvl, folder)
    (folder / "model.safetensors").unlink()
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"--vlm_model .*odd: .*chat template do not take a photo with a text \("):
        LocalLvlm(LvlmSettings(str(folder), device="cpu"))


def test_with_and_without_photos_in_one_batch(internvl: Path) -> None:
    requests = [Request(0, picture(0), "Why?"), Request(1, None, "Why?"), Request(2, picture(1), "Who?")]
    one_by_one = replies(loaded(internvl, max_new_tokens=4), requests)
    assert replies(loaded(internvl, max_new_tokens=4, batch_size=3), requests) == one_by_one


def test_running_out_of_memory_halves_the_batch(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = loaded(internvl, batch_size=4, max_new_tokens=1)
    sizes: list[int] = []

    def generate(batch: list[Request]) -> list[str]:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError
        return [request.prompt for request in batch]

    monkeypatch.setattr(lvlm, "_generate", generate)
    assert replies(lvlm, photo_requests()) == PROMPTS
    assert sizes == [3, 2, 1, 1, 1]


@pytest.mark.parametrize("build", [build_lvlm_folder, build_llava, build_qwen_vl], ids=["internvl", "llava", "qwen-vl"])
def test_a_question_that_the_model_does_not_take_is_one_failure(shared: Shared, build: Any) -> None:
    name = "vqa-internvl" if build is build_lvlm_folder else f"vqa-{build.__name__}"
    lvlm = loaded(shared(name, build), batch_size=4, max_new_tokens=3)
    good = photo_requests()
    bad = Request("bad", picture(0), f"{lvlm._processor.image_token} What is it?")  # the photo's own place, once more
    found = {request.tag: reply for request, reply in lvlm.answers([good[0], bad, *good[1:]])}
    assert found["bad"].text is None
    assert "does not take this question or photo (" in found["bad"].error and "\n" not in found["bad"].error
    assert [found[request.tag].text for request in good] == replies(lvlm, good)


@pytest.mark.parametrize("build", [build_llava, build_qwen_vl], ids=["llava", "qwen-vl"])
def test_other_architectures_answer_through_their_own_template(
    shared: Shared, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared(f"vqa-{build.__name__}", build)
    lvlm = loaded(folder, batch_size=3, max_new_tokens=4)
    requests = photo_requests()
    assert replies(lvlm, requests) == [slow_reply(lvlm, request, 4) for request in requests]
    assert replies(lvlm, [Request("text", None, "Why?")]) == [slow_reply(lvlm, Request("text", None, "Why?"), 4)]
    given = inputs_of(lvlm, [Request(0, picture(0), "Why?")], monkeypatch)
    text = lvlm._processor.batch_decode(given["input_ids"])[0]
    image = lvlm._processor.image_token * text.count(lvlm._processor.image_token)
    assert image
    assert (
        text
        == {
            "build_llava": f"USER: {image}\nWhy? ASSISTANT:",
            "build_qwen_vl": f"<|im_start|>user\n<img>{image}</img>Why?<|im_end|>\n<|im_start|>assistant\n",
        }[build.__name__]
    )


def test_faulty_models_are_named(internvl: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vlm_model ./none.*no such folder"):
        LocalLvlm(LvlmSettings("./none", device="cpu"))
    mute = tmp_path / "mute"
    shutil.copytree(internvl, mute)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        LocalLvlm(LvlmSettings(str(mute), device="cpu"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="--vlm_model"):
        LocalLvlm(LvlmSettings(str(empty), device="cpu"))
    shutil.copy(internvl / "chat_template.jinja", mute)
    (mute / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="--vlm_model"):
        loaded(mute)


def test_a_folder_with_an_at_sign_in_its_path(internvl: Path, tmp_path: Path) -> None:
    (tmp_path / "me@host").symlink_to(internvl)
    described, expected = (loaded(folder).describe() for folder in (tmp_path / "me@host", internvl))
    assert described == {**expected, "source": str(tmp_path / "me@host"), "name": str(tmp_path / "me@host")}


def test_a_folder_below_the_home_folder(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(internvl.parent))
    described = loaded(Path("~", internvl.name)).describe()
    assert (described["source"], described["name"]) == (f"~/{internvl.name}", str(internvl))


def test_missing_weights_are_not_made_up(internvl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(internvl, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        loaded(folder)


def test_remote_code_needs_its_flag(internvl: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "remote", tmp_path / "ran"
    shutil.copytree(internvl, folder)
    (folder / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nfrom transformers import PretrainedConfig\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    with pytest.raises(UserError):
        LocalLvlm(LvlmSettings(str(folder), device="cpu"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import a_package_of_nobody", "a_package_of_nobody.*install what it needs"),
        ("from transformers import PretrainedConfig\nPretrainedConfig.nothing_of_this_name", "nothing_of_this_name"),
    ],
)
def test_code_of_a_checkpoint_that_fails_is_named(internvl: Path, tmp_path: Path, line: str, said: str) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(internvl, folder)
    (folder / "own.py").write_text(f"{line}\nclass OwnConfig:\n    pass\n")
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    with pytest.raises(UserError, match=f"--vlm_model .* cannot be loaded .*{said}"):
        LocalLvlm(LvlmSettings(str(folder), device="cpu", trust_remote_code=True))


@pytest.mark.parametrize("trusted", [False, True])
def test_an_internvl_of_its_own_code_is_told_from_its_port(tmp_path: Path, trusted: bool) -> None:
    own = {"model_type": "internvl_chat", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(
        "from transformers import PretrainedConfig\nclass Config(PretrainedConfig):\n    model_type = 'internvl_chat'\n"
    )
    with pytest.raises(UserError, match=r"--vlm_model .*format of its own code.*InternVL3-…-hf"):
        LocalLvlm(LvlmSettings(str(tmp_path), device="cpu", trust_remote_code=trusted))


def test_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement(LvlmSettings("m", device="cpu")) == {
        "device_map": {"": torch.device("cpu")},
        "dtype": torch.float32,
    }
    assert placement(LvlmSettings("m", device="cpu", dtype="bfloat16"))["dtype"] == torch.bfloat16
    monkeypatch.setattr("pekit.lvlm.pick_device", lambda name: torch.device("cuda:0" if name == "auto" else name))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * (device.index + 1), 9999))
    assert placement(LvlmSettings("m")) == {"device_map": {"": torch.device("cuda:0")}, "dtype": torch.bfloat16}
    assert placement(LvlmSettings("m", device_ids=(2,)))["device_map"] == {"": torch.device("cuda:2")}
    assert placement(LvlmSettings("m", device_ids=(0, 1))) == {
        "device_map": "auto", "max_memory": {0: 900, 1: 1800}, "dtype": torch.bfloat16
    }  # fmt: skip


def test_a_model_that_the_gpus_do_not_hold_is_not_read_from_disk_for_every_word(
    internvl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"device_map": "auto", "max_memory": {"cpu": 100_000}, "dtype": torch.float32}
    monkeypatch.setattr("pekit.lvlm.placement", lambda settings: room)
    lvlm = LocalLvlm(LvlmSettings(str(internvl), device_ids=(0, 1)))
    with pytest.raises(UserError, match="does not fit in the memory of --device_ids 0,1: name more GPUs"):
        lvlm.load()


# --- served ---


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def served(server: ChatServer, **settings: Any) -> ServedLvlm:
    lvlm = open_lvlm(LvlmSettings("openai:my-model", base_url=server.url, **{"patience": QUICK, **settings}))
    assert isinstance(lvlm, ServedLvlm)
    return lvlm


def test_photos_travel_as_png(no_key: pytest.MonkeyPatch) -> None:
    image = picture(5, (70, 50))
    with ChatServer(lambda body, n: " B. ") as server:
        [(request, reply)] = served(server, max_new_tokens=17).answers([Request("tag", image, "Why? A.x or B.y")])
    assert request.tag == "tag" and reply.text == "B." and reply.error == "" and reply.seconds > 0
    [body] = server.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("my-model", 17, 0)
    [message] = body["messages"]
    assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert prompt_of(body) == "Why? A.x or B.y"
    [url] = images_of(body)
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    received = Image.open(io.BytesIO(base64.b64decode(data)))
    assert received.format == "PNG"
    np.testing.assert_array_equal(np.asarray(received), np.asarray(image))
    assert server.keys == ["Bearer none"]


def test_released_wrap_when_served(no_key: pytest.MonkeyPatch) -> None:
    """The template of the ports breaks the line after a photo itself, as it does for a local one."""
    requests = [Request(0, picture(0), "Why?")]
    with ChatServer(lambda body, n: "A") as server:
        list(served(server, prompt_style="released").answers(requests))
        for name in ("InternVL3-14B", "InternVL3-14B-hf", "InternVL3_5-8B-HF"):
            lvlm = open_lvlm(LvlmSettings(f"openai:OpenGVLab/{name}", base_url=server.url, patience=QUICK))
            list(lvlm.answers(requests))
    texts = [[part.get("text") for part in body["messages"][0]["content"]] for body in server.bodies]
    broken, whole = ["USER: ", None, "\nWhy?\nASSISTANT:"], ["USER: ", None, "Why?\nASSISTANT:"]
    assert texts == [broken, broken, whole, whole]


def test_a_system_message_when_served(no_key: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: "A") as server:
        list(served(server, system_message="Be brief.").answers([Request(0, None, "Why?")]))
    [system, user] = server.bodies[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."} and user["role"] == "user"


def test_as_many_requests_at_once_as_asked_for_and_no_photo_sooner(no_key: pytest.MonkeyPatch) -> None:
    taken = itertools.count()

    def requests() -> Iterator[Request]:
        for n in range(12):
            next(taken)
            yield Request(n, None, f"question {n}")

    with ChatServer(lambda body, n: prompt_of(body).upper(), delay=0.1) as server:
        found = served(server, concurrency=4).answers(requests())
        first = next(found)
        assert next(taken) <= 5  # those in flight, and no more
        rest = list(found)
    assert server.most_at_once == 4
    assert {request.tag: reply.text for request, reply in [first, *rest]} == {n: f"QUESTION {n}" for n in range(12)}


def test_failures_are_retried_then_recorded_and_the_rest_goes_on(no_key: pytest.MonkeyPatch) -> None:
    def answer(body: dict, n: int) -> Any:
        if prompt_of(body) == "always":
            return (503, "busy")
        return (429, "slow down") if prompt_of(body) == "once" and n == seen["once"] else "fine"

    seen = {"once": 3}  # the fourth request: after three tries of "always"
    with ChatServer(answer) as server:
        requests = [Request(n, None, prompt) for n, prompt in enumerate(["always", "once", "never"])]
        found = {r.tag: reply for r, reply in served(server, concurrency=1).answers(requests)}
    assert found[0].text is None and "InternalServerError" in found[0].error
    assert (found[1].text, found[2].text) == ("fine", "fine")
    assert [prompt_of(body) for body in server.bodies] == ["always"] * 3 + ["once"] * 2 + ["never"]


def test_replies_without_text_are_asked_again_but_an_empty_one_is_a_reply(no_key: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: [None, "A", ""][n]) as server:
        requests = [Request(n, None, "?") for n in range(2)]
        found = {r.tag: reply.text for r, reply in served(server, concurrency=1).answers(requests)}
    assert found == {0: "A", 1: ""} and len(server.bodies) == 3


def test_replies_cut_before_their_first_word_are_no_replies(no_key: pytest.MonkeyPatch) -> None:
    cut = b'{"choices": [{"message": {"content": %s}, "finish_reason": "length"}]}'
    with ChatServer(lambda body, n: cut % [b"null", b'" "', b'"It is"'][n]) as server:
        requests = [Request(n, None, "?") for n in range(3)]
        found = [reply for _, reply in served(server, concurrency=1).answers(requests)]
        assert len(server.bodies) == 3  # more of the same would be cut, too
    assert [reply.text for reply in found] == [None, None, "It is"]
    assert all("--max_new_tokens" in reply.error for reply in found[:2])


def test_parameters_that_a_model_does_not_take_are_left_out(
    no_key: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(body: dict, n: int) -> Any:
        if "max_tokens" in body:
            return (400, "use max_completion_tokens instead", {"code": "unsupported_parameter", "param": "max_tokens"})
        if "temperature" in body:
            return (400, "only the default", {"code": "unsupported_value", "param": "temperature"})
        return (400, "bad photo", {"code": "invalid_image", "param": "messages"}) if prompt_of(body) == "bad" else "A"

    with ChatServer(answer) as server:
        requests = [Request(n, None, prompt) for n, prompt in enumerate(["?", "?", "bad"])]
        lvlm = served(server, concurrency=1, patience=Patience(1, 0, 5))
        found = [reply for _, reply in lvlm.answers(requests)]
        assert [reply.text for reply in found] == ["A", "A", None]
        assert "bad photo" in found[2].error
        asked = [{name for name in body if name not in ("model", "messages")} for body in server.bodies]
    renamed = {"max_completion_tokens"}
    assert asked == [{"max_tokens", "temperature"}, renamed | {"temperature"}, renamed, renamed, renamed]
    assert lvlm.describe()["parameters_not_taken"] == ["max_tokens", "temperature"]
    assert caplog.text.count("does not take temperature") == 1


def test_a_question_refused_after_others_were_answered_is_one_failure(no_key: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: (403, "flagged") if prompt_of(body) == "bad" else "A") as server:
        requests = [Request(n, None, prompt) for n, prompt in enumerate(["?", "bad", "?"])]
        found = [reply for _, reply in served(server, concurrency=1).answers(requests)]
        assert [reply.text for reply in found] == ["A", None, "A"] and "flagged" in found[1].error
        assert len(server.bodies) == 3
        with pytest.raises(UserError, match="refuses every request"):
            list(served(server).answers(requests[1:2]))


@pytest.mark.parametrize("param", [["max_tokens"], {"name": "max_tokens"}, None, 3])
def test_a_parameter_named_oddly_is_a_failure_like_others(no_key: pytest.MonkeyPatch, param: Any) -> None:
    refused = (400, "no", {"code": "unsupported_parameter", "param": param})
    with ChatServer(lambda body, n: refused) as server:
        [(_, reply)] = served(server, patience=Patience(2, 0, 5)).answers([Request(0, None, "?")])
    assert reply.text is None and "BadRequestError" in reply.error


def test_what_is_no_chat_completion_is_no_reply(no_key: pytest.MonkeyPatch) -> None:
    requests = [Request(n, None, str(n)) for n in range(len(NO_COMPLETIONS))]
    with ChatServer(lambda body, n: NO_COMPLETIONS[int(prompt_of(body))]) as server:
        found = [reply for _, reply in served(server, patience=Patience(2, 0.01, 5)).answers(requests)]
        assert len(server.bodies) == 2 * len(requests)
    assert [reply.text for reply in found] == [None] * len(requests)
    assert {reply.error for reply in found} == {
        "the reply is no chat completion: check the address (it usually ends in /v1)"
    }


@pytest.mark.parametrize(
    ("status", "sent", "words"),
    [
        (400, {"error": "context too long"}, ["400", "context too long"]),
        (422, {"detail": [{"msg": "field required"}]}, ["422", "field required"]),
        (200, {"error": {"message": "not loaded"}}, ["no chat completion (not loaded): check the server"]),
        (200, {"detail": "no such route"}, ["no chat completion (no such route)"]),
    ],
)
def test_a_servers_own_words_are_shown(no_key: pytest.MonkeyPatch, status: int, sent: dict, words: list[str]) -> None:
    with ChatServer(lambda body, n: json.dumps(sent).encode(), status=status) as server:
        [(_, reply)] = served(server).answers([Request(0, None, "?")])
    assert reply.text is None
    for word in words:
        assert word in reply.error


def test_texts_from_a_server_can_be_written(no_key: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: ["A \ud83d\ude00 \udc80", (503, "busy \udc80")][n > 0]) as server:
        requests = [Request(n, None, "?") for n in range(2)]
        found = [reply for _, reply in served(server, concurrency=1).answers(requests)]
    assert found[0].text == "A \U0001f600 ?"
    assert "busy ?" in found[1].error


def test_the_key_goes_where_it_belongs_and_is_never_shown(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("OPENAI_API_KEY", SECRET)
    with ChatServer(lambda body, n: "A") as server:
        list(served(server).answers([Request(0, None, "?")]))
        assert server.keys == ["Bearer none"]  # another server does not get OpenAI's key
        no_key.setenv("VLM_API_KEY", "sk-vlm-key")
        list(served(server).answers([Request(0, None, "?")]))
        assert server.keys[1:] == ["Bearer sk-vlm-key"]
    no_key.setenv("VLM_API_KEY", SECRET)
    with ChatServer(lambda body, n: (500, "broken")) as server:
        lvlm = served(server)
        [(_, reply)] = lvlm.answers([Request(0, None, "?")])
    assert SECRET not in reply.error and "***" in reply.error
    assert SECRET not in str(lvlm.describe())
    with ChatServer(lambda body, n: (401, "who are you")) as server, pytest.raises(UserError) as caught:
        list(served(server).answers([Request(0, None, "?")]))
    assert "openai:my-model" in str(caught.value) and SECRET not in str(caught.value)


def test_a_server_that_refuses_photos_alone_is_refusing_every_request(no_key: pytest.MonkeyPatch) -> None:
    """One word that it was asked for to find out whether it is there counts as no answer to a question."""
    refuse = lambda body, n: "Hi" if prompt_of(body) == "Hello" else (404, "no image input")  # noqa: E731
    with ChatServer(refuse, models=()) as server:
        lvlm = served(server)
        lvlm.check()
        with pytest.raises(UserError, match="refuses every request"):
            list(lvlm.answers([Request(0, Image.new("RGB", (8, 8)), "?")]))
        assert len(server.bodies) == 2


def test_a_list_of_models_that_is_none_is_passed_over(no_key: pytest.MonkeyPatch) -> None:
    for listed in (b"[" * 5000, b"<html>", b'{"data": [null, 3]}', b"null"):
        with ChatServer(lambda body, n: "Hi", models=listed) as server:
            served(server).check()
            assert prompt_of(server.bodies[0]) == "Hello"


@pytest.mark.parametrize(
    ("status", "key", "words"),
    [
        (403, "", "set VLM_API_KEY (environment)"),
        (401, "", "set VLM_API_KEY (environment)"),
        (401, "my-own-key", "check VLM_API_KEY (environment)"),
        (403, "my-own-key", "check VLM_API_KEY (environment), and its rights"),
        (404, "", "check the model's name and --vlm_base_url, which usually ends in /v1"),
        (402, "my-own-key", "check the credit"),
    ],
)
def test_what_to_do_about_a_server_that_refuses(no_key: pytest.MonkeyPatch, status: int, key: str, words: str) -> None:
    no_key.setenv("VLM_API_KEY", key)
    with ChatServer(lambda body, n: (status, "no")) as server, pytest.raises(UserError) as caught:
        list(served(server).answers([Request(0, None, "?")]))
    assert str(caught.value).endswith(f": {words}")


def test_headers_of_the_environment_go_where_they_belong(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {SECRET}")
    no_key.setenv("OPENAI_ORG_ID", "org-secret")
    no_key.setenv("OPENAI_PROJECT_ID", "project-secret")
    with ChatServer(lambda body, n: "A") as server:
        list(served(server).answers([Request(0, None, "?")]))
        assert server.keys == ["Bearer none"]
        for kind, option in (
            ("openai", "OPENAI_API_BASE"),
            ("azure", "OPENAI_API_BASE"),
            ("openai", "OPENAI_BASE_URL"),
        ):
            endpoint = Endpoint("judge", "m", "sk-judge", server.url, kind, "2024-10-21", option)
            Chat(endpoint, QUICK).ask([{"role": "user", "content": "?"}], str)
        assert os.environ["OPENAI_ORG_ID"] == "org-secret"
    for head in server.heads[:3]:
        assert "secret" not in head and SECRET not in head
    # who names the server in the environment means its headers for it
    assert "org-secret" in server.heads[3] and "project-secret" in server.heads[3] and SECRET in server.heads[3]


def test_headers_of_the_environment_are_never_shown(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway-Key: gw-hidden-123\nX-Trace: on\nX-Auth: Bearer hidden-token-9")
    with ChatServer(lambda body, n: (400, "no gw-hidden-123 here, nor hidden-token-9; trace is on")) as server:
        chat = Chat(Endpoint("judge", "m", "sk-judge", server.url, url_option="OPENAI_BASE_URL"), QUICK)
        with pytest.raises(ChatError) as caught:
            chat.ask([{"role": "user", "content": "?"}], str)
    assert "gw-hidden-123" in server.heads[0]
    assert "no *** here" in str(caught.value) and "trace is on" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_token_of_the_environment_does_not_take_the_place_of_the_key(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("AZURE_OPENAI_AD_TOKEN", "hidden-token")
    taken = []
    no_key.setattr("openai.AzureOpenAI", lambda **options: taken.append(os.environ.get("AZURE_OPENAI_AD_TOKEN")))
    with pytest.raises(UserError, match="cannot be reached"):  # what stands for the client has no headers
        Chat(Endpoint("judge", "m", "key", "http://localhost/v1", "azure", "2024-10-21"), QUICK)
    assert taken == [None] and os.environ["AZURE_OPENAI_AD_TOKEN"] == "hidden-token"


def test_served_settings_that_cannot_work(no_key: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="VLM_API_KEY"):
        open_lvlm(LvlmSettings("openai:gpt-4o"))
    with pytest.raises(UserError, match="VLM_API_KEY"):
        open_lvlm(LvlmSettings("openai:gpt-4o", base_url="https://api.openai.com/v1"))
    with pytest.raises(UserError, match="names no model"):
        open_lvlm(LvlmSettings("openai:", base_url="http://host/v1"))
    with pytest.raises(UserError, match="--vlm_base_url goes with --vlm_model openai:<name>, not with my/model"):
        open_lvlm(LvlmSettings("my/model", base_url="http://host/v1"))
    with pytest.raises(UserError, match="password") as caught:
        open_lvlm(LvlmSettings("openai:m", base_url="http://me:hidden@host/v1"))
    assert "hidden" not in str(caught.value)
    for end in ("?key=hidden", "#hidden"):
        with pytest.raises(UserError, match=r"behind \? or #") as caught:
            open_lvlm(LvlmSettings("openai:m", base_url=f"http://host/v1{end}"))
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "ftp://x"),
        ("HTTP_PROXY", "http://me:hidd/en@host:80"),
        ("OPENAI_ORG_ID", "\u00f6rg"),
        ("SSL_CERT_FILE", "/nowhere/cert.pem"),
    ],
)
def test_an_environment_that_cannot_work_is_named(no_key: pytest.MonkeyPatch, name: str, value: str) -> None:
    no_key.setenv(name, value)
    no_key.setenv("VLM_API_KEY", SECRET)
    with pytest.raises(UserError, match=f"openai:m cannot be reached with this environment.*{name}") as caught:
        open_lvlm(LvlmSettings("openai:m"))
    assert "hidd" not in str(caught.value)


def test_a_server_without_a_key_may_speak_of_none(no_key: pytest.MonkeyPatch) -> None:
    with ChatServer(lambda body, n: (400, "prompt_style none is unknown")) as server:
        lvlm = open_lvlm(LvlmSettings("openai:m", base_url=server.url))
        ((_, reply),) = lvlm.answers([Request(0, None, "?")])
    assert "prompt_style none is unknown" in reply.error


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://localhost:8000/v1", "localhost"),
        ("https://API.openai.com/v1\n", "api.openai.com"),
        ("http://[::1]:8000/v1", "::1"),
        ("http://192.168.1.30", "192.168.1.30"),
        ("http://b\u00fccher.example/v1", "b\u00fccher.example"),
        ("http://192.168.1.300/v1", ""),
        ("http://host:99999/v1", ""),
        ("http://host:eight/v1", ""),
        ("http://host:0/v1", ""),
        ("http://[::1/v1", ""),
        ("http://a..b/v1", ""),
        ("http://h\u00e4user.example/v1", "h\u00e4user.example"),
        ("http://\u0939\u093f\u0928\u094d\u0926\u0940.example/v1", "\u0939\u093f\u0928\u094d\u0926\u0940.example"),
        ("http://\u2603\u2603.com/v1", ""),
        ("http://host\u2024com/v1", ""),
        ("http://my host/v1", ""),
        ("http:///v1", ""),
        ("localhost:8000/v1", ""),
        ("me:hidden@host/v1", ""),
        ("ftp://host/v1", ""),
    ],
)
def test_addresses(no_key: pytest.MonkeyPatch, url: str, host: str) -> None:
    assert host_of(url) == host
    no_key.setenv("VLM_API_KEY", f" {SECRET}\n")
    if host:
        open_lvlm(LvlmSettings("openai:m", base_url=url))
        return
    with pytest.raises(UserError, match="openai:m: --vlm_base_url is not of the form") as caught:
        open_lvlm(LvlmSettings("openai:m", base_url=url))
    assert "hidden" not in str(caught.value)


def test_keys_travel_without_line_breaks_and_impossible_ones_are_refused(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("VLM_API_KEY", f"{SECRET}\n")
    with ChatServer(lambda body, n: "A") as server:
        list(served(server).answers([Request(0, None, "?")]))
        assert server.keys == [f"Bearer {SECRET}"]
        for key in ("schl\u00fcssel", "two\nlines", " \n"):
            no_key.setenv("VLM_API_KEY", key)
            with pytest.raises(UserError, match="its key"):
                served(server)


def test_openais_own_key_goes_to_openais_own_address(no_key: pytest.MonkeyPatch) -> None:
    no_key.setenv("OPENAI_API_KEY", SECRET)
    for url, key in (("", SECRET), ("https://api.openai.com/v1", SECRET), ("https://api.openai.com.evil.net/", "none")):
        lvlm = open_lvlm(LvlmSettings("openai:m", base_url=url))
        assert isinstance(lvlm, ServedLvlm) and lvlm._endpoint.key == key


def test_concurrently_ends_at_the_first_exception() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(9):
            taken.append(n)
            yield n

    stops: list[int] = []
    found = concurrently(lambda n: 6 // (2 - n), items(), 1, lambda: stops.append(len(taken)))
    assert [next(found), next(found)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert taken == [0, 1, 2] and set(stops) == {3}
    assert sorted(concurrently(lambda n: n * n, range(5), 3, lambda: None)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("fault", ["function", "items"])
def test_what_is_under_way_at_an_exception_is_not_lost(fault: str) -> None:
    """Two are being worked on when a third fails; they end only once the failure is known."""
    stopped = threading.Event()

    def items() -> Iterator[int]:
        yield from (1, 2)
        if fault == "items":
            raise LookupError
        yield from (3, 4, 5)

    def work(n: int) -> int:
        if n == 3:
            raise LookupError
        assert stopped.wait(10)
        return n

    found: list[int] = []
    with pytest.raises(LookupError):
        for n in concurrently(work, items(), 3, stopped.set):
            found.append(n)
    assert sorted(found) == [1, 2]


def test_local_and_served_models_are_told_apart(internvl: Path) -> None:
    assert isinstance(open_lvlm(LvlmSettings(str(internvl), device="cpu")), LocalLvlm)
    assert SimpleNamespace(**open_lvlm(LvlmSettings("openai:m", base_url="http://h/v1")).describe()).source == "m"
