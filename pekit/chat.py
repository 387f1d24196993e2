"""Chat completions from servers that speak the OpenAI API, with retries; shared by served LVLMs and the judge."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pekit.records import UserError

T = TypeVar("T")

LONGEST_WAIT = 60.0
SHOWN_LETTERS = 200


class ChatError(Exception):
    """The server gave no usable answer, after all attempts; says why."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: requests per question.
        first_wait: seconds after the first failure; doubled after each.
        timeout: seconds that one request may take.
    """

    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 120.0


@dataclass(frozen=True)
class Endpoint:
    """A model on a server.

    Attributes:
        option: what names it to the user, for messages.
        model: its name (Azure: of the deployment).
        key: the secret; neither shown nor written anywhere.
        base_url: of the server; empty for OpenAI's own.
        kind: "openai" or "azure".
        api_version: of Azure's API.
    """

    option: str
    model: str
    key: str = field(repr=False)
    base_url: str = ""
    kind: str = "openai"
    api_version: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.base_url).username is not None:
            raise UserError(f"{self.option}: its URL holds a user name or password; put the key in the environment")


class Chat:
    """Asks a model on a server; may be used from several threads at once.

    Args:
        endpoint: which.
        patience: how long to try.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        import openai

        self._endpoint, self._patience = endpoint, patience
        options: dict[str, Any] = {"api_key": endpoint.key, "max_retries": 0, "timeout": patience.timeout}
        if endpoint.kind == "azure":
            self._client: Any = openai.AzureOpenAI(
                azure_endpoint=endpoint.base_url, api_version=endpoint.api_version, **options
            )
        else:
            self._client = openai.OpenAI(base_url=endpoint.base_url or "https://api.openai.com/v1", **options)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the waits of requests in progress: each fails at its next attempt."""
        self._stopped.set()

    def ask(self, messages: list[dict], accept: Callable[[str], T | None], **parameters: Any) -> tuple[T, str]:
        """Ask until there is an acceptable reply.

        Args:
            messages: of the conversation.
            accept: reads the reply; None asks again.
            parameters: of the request, such as temperature.

        Returns:
            What ``accept`` read, and the reply.

        Raises:
            ChatError: errors that may pass, refusals and unacceptable replies, at every attempt.
            UserError: key, model or address are wrong, so that no request can succeed.
        """
        import openai

        reason, asked_wait = "", 0.0
        for attempt in range(self._patience.attempts):
            own_wait = min(self._patience.first_wait * 2 ** (attempt - 1), LONGEST_WAIT)
            if attempt and self._stopped.wait(max(own_wait, asked_wait)):
                break
            asked_wait = 0.0
            try:
                response = self._client.chat.completions.create(
                    model=self._endpoint.model, messages=messages, **parameters
                )
                choice = response.choices[0] if response.choices else None
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise UserError(
                    f"{self._endpoint.option}: the server refuses every request ({self._shown(error)}): check key, "
                    "model and address"
                ) from None
            except openai.APIError as error:  # 429, 5xx, time-outs, no connection, refused content
                reason = self._shown(error)
                asked_wait = _asked_wait(error)
                continue
            reply = choice.message.content if choice else None
            if choice is None or reply is None or choice.finish_reason == "content_filter":
                reason = "the server gave no text"
                continue
            accepted = accept(reply)
            if accepted is not None:
                return accepted, reply
            reason = f"the reply was '{self._clean(reply)}'"
        raise ChatError(reason or "stopped")

    def _shown(self, error: Exception) -> str:
        return f"{type(error).__name__}: {self._clean(str(error))}"

    def _clean(self, text: str) -> str:
        """Text from the server on one line, without the key or pieces of it that servers quote."""
        text = text.replace(self._endpoint.key, "***") if self._endpoint.key else text
        return re.sub(r"\bsk-[\w*.-]+", "***", " ".join(text.split()))[:SHOWN_LETTERS]


def _asked_wait(error: Exception) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("retry-after", 0)), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0
