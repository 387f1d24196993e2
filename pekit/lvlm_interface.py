"""What every LVLM is: settings, and photos with prompts to replies. Imports no model's library."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pekit.chat import Patience

SERVED = "openai:"
IMAGE = object()  # the photo's place in a prompt


@dataclass(frozen=True)
class LvlmSettings:
    """Which LVLM, where and how it answers.

    Attributes:
        source: hub id, ``id@revision``, local folder, or ``openai:<name>`` for a served model.
        base_url: address of the server; empty for OpenAI's own.
        prompt_style: "released", "plain", or "" for released where the model is an InternVL.
        system_message: what the system says before the user's turn; None for nothing.
        max_new_tokens: longest reply.
        batch_size: questions per generation, halved when memory is short; 0 starts with 8.
        device: as ``--device``.
        device_ids: GPUs to spread the model over.
        dtype: "auto" (bfloat16 on a GPU, else float32) or a number format.
        trust_remote_code: let the checkpoint's own code run.
        concurrency: requests in flight to a server.
        patience: how long to try a server.
    """

    source: str
    base_url: str = ""
    prompt_style: str = ""
    system_message: str | None = None
    max_new_tokens: int = 50
    batch_size: int = 1
    device: str = "auto"
    device_ids: tuple[int, ...] = ()
    dtype: str = "auto"
    trust_remote_code: bool = False
    concurrency: int = 8
    patience: Patience = field(default_factory=Patience)

    @property
    def served(self) -> bool:
        return self.source.startswith(SERVED)


@dataclass(frozen=True)
class Request:
    """A prompt with its photo, or without one; ``tag`` comes back with the reply."""

    tag: Any
    image: Image.Image | None
    prompt: str


@dataclass(frozen=True)
class Reply:
    """The LVLM's words, or None and the reason; the time it took."""

    text: str | None
    error: str = ""
    seconds: float = 0.0


class Lvlm:
    """An LVLM that was found; ``load`` makes it ready to answer."""

    def check(self) -> None:
        """Find out, before anything is done that takes long, whether a server answers.

        Raises:
            UserError: it does not, or refuses every request.
        """

    def load(self) -> None:
        """Read the weights, where there are any to read."""

    def describe(self) -> dict:
        """What ``config.json`` says of it."""
        raise NotImplementedError

    def answers(self, requests: Iterable[Request]) -> Generator[tuple[Request, Reply], None, None]:
        """Answer requests, in no promised order; requests are taken as there is room for them."""
        raise NotImplementedError


def wrap(prompt: str, style: str, with_image: bool, line_break: str = "\n") -> list:
    """The parts of the user's turn: texts, and ``IMAGE`` where the photo goes.

    Args:
        prompt: the text.
        style: "released" is ``USER: <image>\\n…\\nASSISTANT:``, as the released code wraps it inside the model's
            chat template; "plain" is the photo, then the prompt.
        with_image: whether there is a photo.
        line_break: what follows the photo in the released wrap; empty where the template itself breaks the line.
    """
    if style != "released":
        return [IMAGE, prompt] if with_image else [prompt]
    text = f"{prompt}\nASSISTANT:"
    return ["USER: ", IMAGE, line_break + text] if with_image else ["USER: " + text]
