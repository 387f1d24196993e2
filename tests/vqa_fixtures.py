"""Shared by the VQA tests: a server that speaks the OpenAI chat API and fails on purpose, a tiny LVLM, question files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECRET = "sk-test-5ecret-never-to-be-seen"
MOST_REQUESTS = 500

Answer = str | tuple[int, str] | None


class ChatServer:
    """``/v1/chat/completions`` on 127.0.0.1.

    Args:
        answer: request body and its number from 0 -> the reply's text, None for an empty one, or (status, text) for an
            error that quotes the key it was sent, as careless servers do.
        delay: seconds before each answer.
        headers: sent with every answer.
    """

    def __init__(self, answer: Callable[[dict, int], Answer], delay: float = 0, headers: dict | None = None) -> None:
        self.bodies: list[dict] = []
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._answer, self._delay, self._headers = answer, delay, headers or {}
        self._now, self._lock = 0, threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner._handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.address}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        key = request.headers.get("Authorization") or request.headers.get("api-key") or ""
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.keys.append(key)
            self.paths.append(request.path)
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self._delay)
        answer = self._answer(body, number) if number < MOST_REQUESTS else (400, "too many requests for a test")
        with self._lock:
            self._now -= 1
        if isinstance(answer, tuple):
            status, content = answer[0], {"error": {"message": f"{answer[1]} (you sent {key})", "type": "test"}}
        else:
            message = {"role": "assistant", "content": answer}
            status = 200
            content = {
                "id": "chat-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }  # fmt: skip
        try:
            request.send_response(status)
            for name, value in {**self._headers, "Content-Type": "application/json"}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(json.dumps(content).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting, as some tests want


def prompt_of(body: dict) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def images_of(body: dict) -> list[str]:
    """The data URLs of a request's last message."""
    content = body["messages"][-1]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


def build_lvlm_folder(folder: Path) -> None:
    """The sample's InternVL, untrained."""
    from pekit.sample.models.lvlm import build_lvlm

    build_lvlm(folder, seed=4)


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No key or address in the environment, and a working folder of the test's own."""
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_BASE_URL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_json(path: Path, content: Any) -> Path:
    """Write a question file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
