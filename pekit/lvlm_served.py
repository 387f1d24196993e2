"""LVLMs behind the OpenAI chat API."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Generator, Iterable
from typing import Any

from PIL import Image

from pekit.chat import Chat, ChatError, concurrently
from pekit.endpoint import NO_KEY, OPENAI_HOST, Endpoint, host_of
from pekit.lvlm_interface import IMAGE, SERVED, Lvlm, LvlmSettings, Reply, Request, wrap
from pekit.records import UserError


class ServedLvlm(Lvlm):
    """A model behind the OpenAI chat API; photos travel as PNG data URLs, several requests at a time.

    The key is ``VLM_API_KEY``; ``OPENAI_API_KEY`` is sent to OpenAI's own address only.

    Raises:
        UserError: no model is named, OpenAI's own server is meant and no key is set, or key or address can be none.
    """

    def __init__(self, settings: LvlmSettings) -> None:
        name = settings.source.removeprefix(SERVED).strip()
        if not name:
            raise UserError(f"--vlm_model {SERVED} names no model: write {SERVED}<name>, as the server calls it")
        own = not settings.base_url or host_of(settings.base_url) == OPENAI_HOST
        variables = ("VLM_API_KEY", "OPENAI_API_KEY") if own else ("VLM_API_KEY",)
        variable = next((name for name in variables if os.environ.get(name)), variables[0])
        key = os.environ.get(variable) or ("" if own else NO_KEY)
        if not key:
            raise UserError(
                f"--vlm_model {settings.source} needs a key: set VLM_API_KEY in the environment, or name another "
                "server with --vlm_base_url"
            )
        option = f"--vlm_model {settings.source}"
        self._endpoint = Endpoint(
            option, name, key, settings.base_url, url_option="--vlm_base_url", key_option=f"{variable} (environment)"
        )
        self._chat = Chat(self._endpoint, settings.patience)
        self._style = settings.prompt_style or ("released" if "internvl" in name.lower() else "plain")
        self._line_break = "" if name.lower().endswith("-hf") else "\n"  # the ports' chat template breaks the line
        self._concurrency, self._max_new_tokens = settings.concurrency, settings.max_new_tokens
        self._system = [{"role": "system", "content": settings.system_message}] if settings.system_message else []

    def describe(self) -> dict:
        served = {"source": self._endpoint.model, "base_url": self._endpoint.base_url, "prompt_style": self._style}
        return served | ({"parameters_not_taken": refused} if (refused := self._chat.refused) else {})

    def check(self) -> None:
        self._chat.check()

    def answers(self, requests: Iterable[Request]) -> Generator[tuple[Request, Reply], None, None]:
        return concurrently(self._answer, requests, self._concurrency, self._chat.stop)

    def _answer(self, request: Request) -> tuple[Request, Reply]:
        parts = wrap(request.prompt, self._style, request.image is not None, self._line_break)
        content: list[dict[str, Any]] = []
        for part in parts:
            if part is IMAGE and request.image is not None:
                content.append({"type": "image_url", "image_url": {"url": data_url(request.image)}})
            else:
                content.append({"type": "text", "text": part})
        started = time.perf_counter()
        try:
            text, _ = self._chat.ask(
                [*self._system, {"role": "user", "content": content}],
                str.strip,  # an empty reply is a reply, as it is of a local model
                temperature=0,
                max_tokens=self._max_new_tokens,
            )
        except ChatError as error:
            return request, Reply(None, str(error), time.perf_counter() - started)
        return request, Reply(text, "", time.perf_counter() - started)


def data_url(image: Image.Image) -> str:
    """An image as a PNG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # Pillow's usual level takes twice the time to save a tenth
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
