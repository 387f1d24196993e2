"""LVLMs of transformers, and which of the two kinds a name means."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from pekit.hub import find_checkpoint, is_out_of_memory, pick_device
from pekit.lvlm_interface import IMAGE, SERVED, Lvlm, LvlmSettings, Reply, Request, wrap
from pekit.lvlm_served import ServedLvlm
from pekit.records import UserError, counted, reason

log = logging.getLogger(__name__)

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # where replies begin and end


def open_lvlm(settings: LvlmSettings) -> Lvlm:
    """Find an LVLM; its weights are not read yet.

    Raises:
        UserError: it is not there, or a served model is named without what reaching it needs, or a server for another.
    """
    if settings.base_url and not settings.served:
        raise UserError(
            f"--vlm_base_url goes with --vlm_model {SERVED}<name>, not with {settings.source}: write {SERVED} before "
            "the model's name, or leave --vlm_base_url out"
        )
    return ServedLvlm(settings) if settings.served else LocalLvlm(settings)


def native_port(source: str) -> str:
    """The checkpoint that holds a model in transformers' own format: InternVL3's are beside the original ones.

    Args:
        source: hub id or ``id@revision``; anything else comes back as it is.
    """
    name, at, revision = source.partition("@")
    match = re.fullmatch(r"OpenGVLab/InternVL3(_5)?-[\w.-]+?", name)
    if not match or name.lower().endswith("-hf"):
        return source
    return name + ("-HF" if match[1] else "-hf") + at + revision


class LocalLvlm(Lvlm):
    """Any image-text-to-text model of transformers, through its own processor and chat template; greedy.

    Raises:
        UserError: the checkpoint is not there, its architecture is unknown, it takes no images or has no chat template.
    """

    def __init__(self, settings: LvlmSettings) -> None:
        source = native_port(settings.source)
        if source != settings.source:
            log.info("%s is read from its native port %s", settings.source, source)
        self._trust: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
        found = find_checkpoint(source, "--vlm_model", **self._trust)
        if found.config.model_type == "internvl_chat":  # its code has no class for a chat with photos
            raise UserError(
                f"--vlm_model {settings.source} is an InternVL in the format of its own code: take its port "
                "(OpenGVLab/InternVL3-…-hf), or serve it and name it openai:<name>"
            )
        self._checkpoint = replace(found, source=settings.source)
        self._processor = self._checkpoint.part(AutoProcessor, **self._trust)
        if not hasattr(self._processor, "image_processor"):  # of a language model it is a tokenizer
            raise UserError(f"--vlm_model {settings.source} takes no images: give a vision-language model")
        # older fine-tunes have it with the tokenizer alone
        own_template = getattr(self._processor, "chat_template", None)
        self._processor.chat_template = own_template or self._processor.tokenizer.chat_template
        if not self._processor.chat_template:
            raise UserError(f"--vlm_model {settings.source} has no chat template: give an instruction-tuned model")
        self._pillow_images()
        self._processor.tokenizer.padding_side = "left"
        if self._processor.tokenizer.pad_token is None:
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token
        self._style = settings.prompt_style or ("released" if "internvl" in found.config.model_type else "plain")
        self._batch_size, self._settings = settings.batch_size or 8, settings
        self._model: Any = None
        try:  # what does not go together is told before photos are searched and weights are read
            self._line_break = "" if self._template_breaks_line() else "\n"
            self._inputs([Request(None, Image.new("RGB", (64, 64)), "?")])
        except Exception as error:  # templates and processors are the checkpoint's own, with errors of every kind
            raise UserError(
                f"--vlm_model {settings.source}: its processor and chat template do not take a photo with a text "
                f"({reason(error)}): give a complete vision-language model that is tuned for chat"
            ) from error

    def load(self) -> None:
        """Read the weights.

        Raises:
            UserError: weights are missing or damaged, the architecture is of another kind, a device is not on this
                machine, or the GPUs named do not hold the model.
        """
        options = {**placement(self._settings), **self._trust}
        self._model = self._checkpoint.load(AutoModelForImageTextToText, **options)
        if "disk" in (getattr(self._model, "hf_device_map", None) or {}).values():  # each word would be read from there
            raise UserError(
                f"--vlm_model {self._settings.source} does not fit in the memory of --device_ids "
                f"{','.join(map(str, self._settings.device_ids))}: name more GPUs, or a smaller model"
            )
        # What else a checkpoint's generation_config.json asks for, such as a penalty on words said before, would make
        # other than the likeliest word win; generate() falls back on it for all that is not spelled out.
        if own := getattr(self._model, "generation_config", None):  # a checkpoint's own code may do without
            ids = {name: getattr(own, name) for name in TOKEN_IDS}
            ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
            # where there is no such file, the end of a text may be known and that of a turn not
            ids["eos_token_id"] = sorted({*ends, self._processor.tokenizer.eos_token_id} - {None})
            self._model.generation_config = GenerationConfig(**ids)

    def _pillow_images(self) -> None:
        """Prepare images as the published codes do, by Pillow."""
        try:
            self._processor.image_processor = self._checkpoint.part(AutoImageProcessor, backend="pil", **self._trust)
        except UserError:
            log.warning("%s has no Pillow image processor: using its own", self._checkpoint.source)

    def _template_breaks_line(self) -> bool:
        content = [{"type": "image"}, {"type": "text", "text": "@"}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        return "\n@" in text

    def describe(self) -> dict:
        source = self._checkpoint.described()
        return {**source, "dtype": str(self._model.dtype).removeprefix("torch."), "prompt_style": self._style}

    def answers(self, requests: Iterable[Request]) -> Generator[tuple[Request, Reply], None, None]:
        waiting = iter(requests)
        while batch := list(islice(waiting, self._batch_size)):
            while batch:
                piece, started = batch[: self._batch_size], time.perf_counter()
                found: list[Reply] | None = None
                try:
                    found = self._replies(piece)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if self._batch_size == 1:
                        raise UserError(
                            "one question does not fit in memory: give more --device_ids, or a smaller --vlm_model"
                        ) from None
                if found is None:  # only here has the failed pass let go of its memory
                    self._batch_size = -(-self._batch_size // 2)
                    torch.cuda.empty_cache()
                    log.warning("out of memory: going on with %s per batch", counted(self._batch_size, "question"))
                    continue
                seconds = (time.perf_counter() - started) / len(piece)
                replies = (replace(reply, seconds=seconds) for reply in found)
                yield from zip(piece, replies, strict=True)
                batch = batch[len(piece) :]

    def conversation(self, request: Request) -> list[dict]:
        """The system's message, where there is one, and the user's turn in the form that chat templates take."""
        parts = wrap(request.prompt, self._style, request.image is not None, self._line_break)
        content = [
            {"type": "image", "image": request.image} if part is IMAGE else {"type": "text", "text": part}
            for part in parts
        ]
        turn = {"role": "user", "content": content}
        said = self._settings.system_message
        return [{"role": "system", "content": [{"type": "text", "text": said}]}, turn] if said else [turn]

    def _inputs(self, batch: Sequence[Request]) -> Any:
        """What the model is given of requests, all with photos or all without."""
        # one tile, where the model would cut photos into several
        one_tile = {"crop_to_patches": False} if hasattr(self._processor.image_processor, "crop_to_patches") else {}
        return self._processor.apply_chat_template(
            [self.conversation(request) for request in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "images_kwargs": one_tile},
        )

    def _replies(self, batch: Sequence[Request]) -> list[Reply]:
        """Replies to a batch, without text where the model does not take a request: its photo may be too narrow, or its
        words may hold the photo's token."""
        try:
            return [Reply(text) for text in self._generate(batch)]
        except ValueError as error:
            if len(batch) > 1:  # which one is at fault shows where each is asked alone
                return [reply for request in batch for reply in self._replies([request])]
            return [Reply(None, f"the LVLM does not take this question or photo ({reason(error)})")]

    def _generate(self, batch: Sequence[Request]) -> list[str]:
        if len({request.image is None for request in batch}) > 1:  # a run may ask with and without photos
            return [text for request in batch for text in self._generate([request])]
        inputs = self._inputs(batch).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=self._settings.max_new_tokens,
                do_sample=False,
                pad_token_id=self._processor.tokenizer.pad_token_id,
            )
        texts = self._processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]


def placement(settings: LvlmSettings) -> dict[str, Any]:
    """Where a model lies and in which number format, as ``from_pretrained`` takes it.

    Several ``device_ids`` share the model between them, by accelerate.

    Raises:
        UserError: a device is not on this machine.
    """
    on_gpu = settings.device in ("auto", "cuda") and bool(settings.device_ids)
    devices = [pick_device(f"cuda:{number}") for number in settings.device_ids] if on_gpu else []
    first = devices[0] if devices else pick_device(settings.device)
    name = ("bfloat16" if first.type == "cuda" else "float32") if settings.dtype == "auto" else settings.dtype
    dtype = getattr(torch, name)
    if len(devices) < 2:
        return {"device_map": {"": first}, "dtype": dtype}
    room = {device.index: int(0.9 * torch.cuda.mem_get_info(device)[0]) for device in devices}
    return {"device_map": "auto", "max_memory": room, "dtype": dtype}
