"""Chat completions from servers that speak the OpenAI API, with retries; shared by served LVLMs and the judge."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from pekit.endpoint import NO_KEY, OPENAI_HOST, Endpoint, host_of
from pekit.records import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

# Variables from which its library takes headers of every request: they may hold secrets, as its key is one.
HEADER_VARIABLES = ("OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
AZURE_TOKEN = "AZURE_OPENAI_AD_TOKEN"  # takes the place of the key that was given
LONGEST_WAIT = 60.0
HOPELESS = (401, 402, 403, 404)  # status codes of key, credit, rights and address
OF_ONE_QUESTION = (403, 404)  # those that may speak of the question, where others have been answered
NO_CREDIT = "insufficient_quota"  # what OpenAI says of it, with the status of a busy server
UNREACHED = ("ConnectError", "ConnectTimeout", "ProxyError")  # the HTTP library's names where no connection was made
PASSING = (408, 409, 429)  # and all from 500
SHOWN_LETTERS = 200
SECRET_LETTERS = 8  # shorter words of a secret would hide too much beside it


class ChatError(Exception):
    """The server gave no usable answer, after all attempts; says why."""


class NoCompletionError(Exception):
    """What a server sent is no chat completion; its text is what the server says instead, if anything."""


class CutError(Exception):
    """The reply was cut before its first word: a model that thinks first has spent the tokens allowed on that."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: requests per question.
        first_wait: seconds after the first failure; doubled after each.
        timeout: seconds without a byte from the server, after which a request has failed.
    """

    attempts: int = 6
    first_wait: float = 1.0
    timeout: float = 120.0


@contextmanager
def _unset(variables: Iterable[str]) -> Iterator[None]:
    """An environment without these variables."""
    held = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


class Chat:
    """Asks a model on a server; may be used from several threads at once.

    Headers that the environment holds for OpenAI go to its own address, and to one that the environment names beside
    them (``OPENAI_BASE_URL``).

    Args:
        endpoint: which.
        patience: how long to try.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        import openai

        self._endpoint, self._patience = endpoint, patience
        options: dict[str, Any] = {"api_key": endpoint.key, "max_retries": 0, "timeout": patience.timeout}
        address = endpoint.base_url or f"https://{OPENAI_HOST}/v1"
        meant = host_of(address) == OPENAI_HOST or endpoint.url_option == "OPENAI_BASE_URL"
        try:
            with _unset((AZURE_TOKEN, *(() if meant else HEADER_VARIABLES))):
                if endpoint.kind == "azure":
                    self._client: Any = openai.AzureOpenAI(
                        azure_endpoint=address, api_version=endpoint.api_version, **options
                    )
                else:
                    self._client = openai.OpenAI(base_url=address, **options)
            str(self._client.default_headers).encode("ascii")  # the organisation's name is one of them
        except Exception as error:  # a missing package, letters, a file, a proxy's address
            # The HTTP library has a class of its own for addresses, and quotes what may be a piece of a password.
            known = isinstance(error, (ImportError, ValueError, OSError))
            why = f"{type(error).__name__}{f': {error}' if known else ''}"
            raise UserError(
                f"{endpoint.option} cannot be reached with this environment ({why}): check "
                f"ALL_PROXY, HTTPS_PROXY, HTTP_PROXY, SSL_CERT_FILE, {', '.join(HEADER_VARIABLES)}"
            ) from None
        custom = os.environ.get(HEADER_VARIABLES[0], "") if meant else ""
        words = [word for line in custom.splitlines() for word in line.partition(":")[2].split()]
        self._secrets = [word for word in words if len(word) >= SECRET_LETTERS]
        if endpoint.key != NO_KEY:
            self._secrets.append(endpoint.key)
        self._stopped = threading.Event()
        self._refused: set[str] = set()  # parameters that this model does not take
        self._answered = False
        self._there = False  # whether anybody has been heard of at the address

    @property
    def refused(self) -> list[str]:
        """Parameters that the model has been found not to take, and that were left out."""
        return sorted(self._refused)

    def stop(self) -> None:
        """End the waits of requests in progress: each fails at its next attempt."""
        self._stopped.set()

    def check(self) -> None:
        """Find out whether requests can succeed, before anything is done that takes long.

        A server that lists the model is not asked more; any other is asked for one word.

        Raises:
            UserError: key, model or address are wrong, so that no request can succeed.
        """
        import openai

        # not every server has a list
        with suppress(openai.OpenAIError, ValueError, AttributeError, TypeError, RecursionError):
            if self._endpoint.model in {model.id for model in self._client.models.list()}:
                return
        with suppress(ChatError):  # of this one question
            self.ask([{"role": "user", "content": "Hello"}], str, max_tokens=1)
        self._answered = False  # it may refuse every question with a photo

    def ask(self, messages: list[dict], accept: Callable[[str], T | None], **parameters: Any) -> tuple[T, str]:
        """Ask until there is an acceptable reply.

        Args:
            messages: of the conversation.
            accept: reads the reply; None asks again.
            parameters: of the request, such as temperature.

        Returns:
            What ``accept`` read, and the reply.

        Raises:
            ChatError: errors that may pass, refusals and unacceptable replies, at every attempt; a request that the
                server does not take.
            UserError: key, model or address are wrong, so that no request can succeed.
        """
        import openai

        reason, asked_wait, unreached = "", 0.0, False
        own_wait = self._patience.first_wait
        for attempt in range(self._patience.attempts):
            if attempt:
                if self._stopped.wait(min(max(own_wait, asked_wait), LONGEST_WAIT)):
                    break
                own_wait = min(2 * own_wait, LONGEST_WAIT)
            asked_wait, unreached = 0.0, False
            try:
                reply = read_completion(self._completion(messages, parameters))
                self._answered = self._there = True
            except openai.APIError as error:
                status = getattr(error, "status_code", None)  # None: no connection, or a time-out
                unreached = type(error.__cause__).__name__ in UNREACHED
                self._there = self._there or not unreached
                hopeless = status in HOPELESS or NO_CREDIT in (error.code, error.type)
                if hopeless and not (self._answered and status in OF_ONE_QUESTION):
                    # why a key is refused is not shown: servers quote it, masked in ways of their own
                    why = self._shown(error) if status == 404 else f"{type(error).__name__}, status {status}"
                    raise UserError(
                        f"{self._endpoint.option}: the server refuses every request ({why}): {self._mend(status)}"
                    ) from None
                reason, asked_wait = self._shown(error), _asked_wait(error)
                if not _may_pass(error):
                    break
                continue
            except CutError:
                raise ChatError(
                    "the reply was cut before its first word: it needs more tokens (a new run with a larger "
                    "--max_new_tokens; of a judge: MAX_TOKENS)"
                ) from None
            except NoCompletionError as error:
                said = self._clean(encodable(str(error)))
                hint = f" ({said}): check the server" if said else ": check the address (it usually ends in /v1)"
                reason = f"the reply is no chat completion{hint}"
                continue
            if reply is None:
                reason = "the server gave no text"
                continue
            accepted = accept(reply)
            if accepted is not None:
                return accepted, reply
            reason = f"the reply was '{self._clean(reply)}'"
        if unreached and not self._there and not self._stopped.is_set():
            raise UserError(
                f"{self._endpoint.option}: nobody answers at {self._client.base_url} ({reason}): start the server, or "
                "check address and proxies"
            )
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

    def _mend(self, status: int | None) -> str:
        """What to do about a server that refuses every request."""
        endpoint = self._endpoint
        if status in (401, 403):
            if endpoint.key == NO_KEY:
                return f"set {endpoint.key_option}"
            return f"check {endpoint.key_option}" + (", and its rights" if status == 403 else "")
        if status == 404 and endpoint.kind == "azure":
            return f"check the deployment's name and {endpoint.url_option}"
        if status == 404:
            return f"check the model's name and {endpoint.url_option}, which usually ends in /v1"
        return "check the credit"

    def _shown(self, error: Exception) -> str:
        cause = f" {error.__cause__}" if error.__cause__ else ""  # which "Connection error." does not tell
        said, response = str(error), getattr(error, "response", None)
        # the library reads no errors but those of OpenAI's form
        if response is not None and said == f"Error code: {response.status_code}":
            said += f" {response.text}"
        return f"{type(error).__name__}: {self._clean(encodable(f'{said}{cause}'))}"

    def _clean(self, text: str) -> str:
        """Text from the server on one line, without secrets or pieces of the key that servers quote."""
        key = self._endpoint.key
        # what masks of any form leave to be seen
        ends = f"|{re.escape(key[-4:])}" if len(key) >= SECRET_LETTERS else ""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
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
        completion = json.loads(content)
        if isinstance(completion, dict) and "choices" not in completion:
            raise NoCompletionError(_complaint(completion))
        choices = completion["choices"]
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


def _complaint(content: Any) -> str:
    """What a JSON object says in place of a completion: the first text under a name that servers give to errors."""
    for name in ("error", "detail", "message"):
        if isinstance(content, dict) and name in content:
            return _complaint(content[name])
    return content if isinstance(content, str) else ""


def encodable(text: str) -> str:
    """A text that can be written: JSON may hold halves of letters, which become question marks."""
    return text.encode(errors="replace").decode()


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: no connection, a busy server, content that a filter refused."""
    status = getattr(error, "status_code", None)
    refused = re.search("filter|policy|safety|moderation", f"{getattr(error, 'code', '')} {error}", re.IGNORECASE)
    return status is None or status in PASSING or status >= 500 or refused is not None


def _asked_wait(error: Exception) -> float:
    """Seconds that the server asks to wait; 0 where it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0


def concurrently(
    function: Callable[[T], R], items: Iterable[T], at_once: int, stop: Callable[[], None]
) -> Generator[R, None, None]:
    """Apply a function in threads; items are taken as there is room for them.

    The threads are daemons, so that a process that is stopped does not wait for requests in flight.

    Args:
        function: what to do with an item.
        items: taken in the caller's thread.
        at_once: how many threads at most.
        stop: ends the waits of what is under way; called at the first exception and at the end.

    Yields:
        Results in the order in which they come. After an exception, of the function or of the items, nothing new is
        begun; what is under way may have been paid for, so its results come before the exception does.
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
    failure: BaseException | None = None
    try:
        try:
            for item in items:
                threading.Thread(target=work, args=(item,), daemon=True).start()
                running += 1
                if running == at_once:
                    running -= 1
                    yield done.get().result()
        except Exception as error:
            failure = error
            stop()
        while running:
            running -= 1
            future = done.get()
            if not (raised := future.exception()):
                yield future.result()
            elif not failure:
                failure = raised
                stop()
        if failure:
            raise failure
    finally:
        stop()
