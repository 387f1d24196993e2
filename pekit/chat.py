"""Chat completions from servers that speak the OpenAI API, with retries; shared by served LVLMs and the judge."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any, TypeVar
from unicodedata import category
from urllib.parse import urlsplit

from pekit.records import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

OPENAI_HOST = "api.openai.com"
LONGEST_WAIT = 60.0
SHOWN_LETTERS = 200


class ChatError(Exception):
    """The server gave no usable answer, after all attempts; says why."""


class NoCompletionError(Exception):
    """What a server sent is no chat completion."""


class CutError(Exception):
    """The tokens allowed were spent before the first word, as models spend them that think first."""


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
        url_option: what sets the address, for messages.

    Raises:
        UserError: key or address can be none.
    """

    option: str
    model: str
    key: str = field(repr=False)
    base_url: str = ""
    kind: str = "openai"
    api_version: str = ""
    url_option: str = "the URL"

    def __post_init__(self) -> None:
        for name in ("key", "base_url"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if not (self.key and self.key.isascii() and self.key.isprintable()):  # it travels in a header
            raise UserError(f"{self.option}: its key is empty or has letters that no key has: set it again")
        if self.base_url and not host_of(self.base_url):  # not shown: it may hold a password
            raise UserError(
                f"{self.option}: {self.url_option} is not of the form http://HOST:PORT/v1 (or https): mend it"
            )
        if urlsplit(self.base_url).username is not None:
            raise UserError(
                f"{self.option}: {self.url_option} holds a user name or password; put the key in the environment"
            )


def host_of(url: str) -> str:
    """The host of a server's address; "" where it is not of the form ``http://HOST:PORT/PATH``."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        if ":" in host or host.replace(".", "").isdigit():
            ip_address(host)
    except ValueError:  # of the port, the numbers or the letters of the name
        return ""
    # names beyond ASCII hold letters, their marks and digits; HTTP libraries fail on any other
    lettered = host.isascii() or all(letter in "-." or category(letter)[0] in "LMN" for letter in host)
    written = parts.scheme in ("http", "https") and port != 0 and url.isprintable() and " " not in url and lettered
    return host if written else ""


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
        self._refused: set[str] = set()  # parameters that this model does not take
        self._answered = False

    @property
    def refused(self) -> list[str]:
        """Parameters that the model has been found not to take, and that were left out."""
        return sorted(self._refused)

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
                reply = read_completion(self._completion(messages, parameters))
                self._answered = True
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                if self._answered and not isinstance(error, openai.AuthenticationError):
                    raise ChatError(self._shown(error)) from None  # it is this question that is refused
                # why a key is refused is not shown: servers quote it, masked in ways of their own
                known = isinstance(error, openai.NotFoundError)
                why = self._shown(error) if known else f"{type(error).__name__}, status {error.status_code}"
                raise UserError(
                    f"{self._endpoint.option}: the server refuses every request ({why}): check key, model and address"
                ) from None
            except openai.APIError as error:  # 429, 5xx, time-outs, no connection, refused content
                reason = self._shown(error)
                asked_wait = _asked_wait(error)
                continue
            except CutError:
                raise ChatError(
                    "the reply was cut before its first word: it needs more tokens (a new run with a larger "
                    "--max_new_tokens; of a judge: MAX_TOKENS)"
                ) from None
            except NoCompletionError:
                reason = "the reply is no chat completion: check the address (it usually ends in /v1)"
                continue
            if reply is None:
                reason = "the server gave no text"
                continue
            accepted = accept(reply)
            if accepted is not None:
                return accepted, reply
            reason = f"the reply was '{self._clean(reply)}'"
        raise ChatError(reason or "stopped")

    def _completion(self, messages: list[dict], parameters: dict[str, Any]) -> bytes:
        """What the server sends; parameters that it says the model does not take are left out from then on.

        Newer models of OpenAI know ``max_tokens`` by another name, and decode at their own temperature.
        """
        import openai

        while True:
            sent = {name: value for name, value in parameters.items() if name not in self._refused}
            if "max_tokens" in self._refused and "max_tokens" in parameters:
                sent["max_completion_tokens"] = parameters["max_tokens"]
            try:
                create = self._client.chat.completions.with_raw_response.create
                return create(model=self._endpoint.model, messages=messages, **sent).content
            except openai.BadRequestError as error:
                unsupported = error.code in ("unsupported_parameter", "unsupported_value")
                name: Any = error.param  # whatever the server wrote
                if not (unsupported and isinstance(name, str) and name in sent and name in parameters):
                    raise
                if name != "max_tokens" and name not in self._refused:
                    log.warning("%s does not take %s: going on without", self._endpoint.option, name)
                self._refused.add(name)

    def _shown(self, error: Exception) -> str:
        return f"{type(error).__name__}: {self._clean(encodable(str(error)))}"

    def _clean(self, text: str) -> str:
        """Text from the server on one line, without the key or pieces of it that servers quote."""
        key = self._endpoint.key
        ends = f"|{re.escape(key[-4:])}" if len(key) >= 8 else ""  # what masks of any form leave to be seen
        text = " ".join(text.replace(key, "***").split())
        return re.sub(rf"\bsk-[\w*.-]+|\S*(?:\*{{3,}}{ends})\S*", "***", text)[:SHOWN_LETTERS]


def read_completion(content: bytes) -> str | None:
    """The text of a chat completion.

    Args:
        content: what the server sent.

    Returns:
        The text; None where there is none, or only what a filter left of it.

    Raises:
        CutError: there is none, because the tokens allowed were spent.
        NoCompletionError: it is something else, such as a web page.
    """
    try:
        choices = json.loads(content)["choices"]
        if not choices:
            return None
        text, end = choices[0]["message"].get("content"), choices[0].get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NoCompletionError from None
    if text is not None and not isinstance(text, str):
        raise NoCompletionError
    if end == "length" and not (text or "").strip():
        raise CutError
    return None if text is None or end == "content_filter" else encodable(text)


def encodable(text: str) -> str:
    """A text that can be written: JSON may hold halves of letters, which become question marks."""
    return text.encode(errors="replace").decode()


def _asked_wait(error: Exception) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("retry-after", 0)), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def concurrently(function: Callable[[T], R], items: Iterable[T], at_once: int) -> Generator[R, None, None]:
    """Apply a function in threads; items are taken as there is room for them.

    The threads are daemons, so that a process that is stopped does not wait for requests in flight.

    Args:
        function: what to do with an item; its exception ends the results.
        items: taken in the caller's thread.
        at_once: how many threads at most.

    Yields:
        Results in the order in which they come.
    """
    done: SimpleQueue[Future[R]] = SimpleQueue()

    def work(item: T) -> None:
        future: Future[R] = Future()
        try:
            future.set_result(function(item))
        except BaseException as error:
            future.set_exception(error)
        done.put(future)

    running = 0
    for item in items:
        threading.Thread(target=work, args=(item,), daemon=True).start()
        running += 1
        if running == at_once:
            yield done.get().result()
            running -= 1
    for _ in range(running):
        yield done.get().result()
