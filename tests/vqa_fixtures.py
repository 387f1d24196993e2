"""Shared by the VQA tests: a server that speaks the OpenAI chat API and fails on purpose, tiny LVLMs, files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "5ecret-never-to-be-seen"
MOST_REQUESTS = 500

Answer = str | bytes | tuple[int, str] | tuple[int, str, dict] | None


class ChatServer:
    """``/v1/chat/completions`` on 127.0.0.1, and ``/v1/models``.

    Args:
        answer: request body and its number from 0 -> the reply's text, None for an empty one, bytes to send as they
            are, or (status, text) for an error that quotes the key it was sent, as careless servers do;
            more fields of the error may follow.
        delay: seconds before each answer.
        headers: sent with every answer.
        status: of answers that are bytes.
        models: the names that it lists, or what it sends in place of a list.
    """

    def __init__(
        self,
        answer: Callable[[dict, int], Answer],
        delay: float = 0,
        headers: dict | None = None,
        status: int = 200,
        models: tuple[str, ...] | bytes = ("test", "judge"),
    ) -> None:
        self.bodies: list[dict] = []
        self.keys: list[str] = []
        self.heads: list[str] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._answer, self._delay, self._headers, self._status = answer, delay, headers or {}, status
        self._now, self._lock = 0, threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if isinstance(models, bytes):
                    owner._send(self, 200, models)
                    return
                listed = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in models]
                owner._send(self, 200, {"object": "list", "data": listed})

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
            self.heads.append(str(request.headers))
            self.paths.append(request.path)
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self._delay)
        answer = self._answer(body, number) if number < MOST_REQUESTS else (400, "too many requests for a test")
        with self._lock:
            self._now -= 1
        content: Any
        if isinstance(answer, bytes):
            status, content = self._status, answer
        elif isinstance(answer, tuple):
            error = {"message": f"{answer[1]} (you sent {key})", "type": "test", **(answer[2] if answer[2:] else {})}
            status, content = answer[0], {"error": error}
        else:
            message = {"role": "assistant", "content": answer}
            status = 200
            content = {
                "id": "chat-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }  # fmt: skip
        self._send(request, status, content)

    def _send(self, request: BaseHTTPRequestHandler, status: int, content: Any) -> None:
        try:
            request.send_response(status)
            for name, value in {**self._headers, "Content-Type": "application/json"}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting, as some tests want


NO_COMPLETIONS = (  # what a wrong address, or a proxy, may answer with status 200
    b"<html><body>Welcome</body></html>",
    b'{"choices": [',
    b"[]",
    b"null",
    b"",
    b"\xff\xfe",
    b'{"object": "list", "data": []}',
    b'{"choices": [null]}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": [{"type": "text", "text": "Yes"}]}}]}',
)


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
    from pekit.sample.models import write_model

    write_model("lvlm", folder, seed=4)


def write_json(path: Path, content: Any) -> Path:
    """Write a question file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


# --- tiny models of other architectures ---

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<img><|image_pad|></img>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_llava(folder: Path) -> None:
    """LLaVA: CLIP and Llama, one token per patch, photos before the text in its template."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from pekit.sample.models.lvlm import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(5)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>",
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip


def build_qwen_vl(folder: Path) -> None:
    """Qwen2-VL: photos at their own size, rotary positions in three axes."""
    import torch
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    from pekit.sample.models.lvlm import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<img>"), vision_end_token_id=ids("</img>"),
    )  # fmt: skip
    torch.manual_seed(6)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=QWEN_TEMPLATE
    ).save_pretrained(folder)
