"""A model on loopback that streams chat completions (OpenAI's wire format) and remembers nothing itself.

It answers with every word of the conversation it is sent that begins with "secret-", so an answer tells exactly what
its caller remembers. A message that holds the word "wait" is answered with one word, and the rest only after
`release`; one that holds "fail" with an HTTP error.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-1"
_SECRET = re.compile(r"secret-[a-z0-9-]+")


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer(messages: list[dict[str, Any]]) -> str:
    """Return what the model says: the secrets of the conversation, in order, each once."""
    spoken = " ".join(text_of(one) for one in messages if one["role"] in ("user", "assistant"))
    return "I know " + (" ".join(dict.fromkeys(_SECRET.findall(spoken))) or "nothing")


class Handler(BaseHTTPRequestHandler):
    server: "Model"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = text_of(asked["messages"][-1])
        if "fail" in last:
            self.send_error(400, "the model was told to fail")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        first, *words = answer(asked["messages"]).split(" ")
        self.chunk({"role": "assistant", "content": first})
        if "wait" in last:
            self.server.released.wait(60)
        for word in words:
            self.chunk({"content": " " + word})
        self.chunk({}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def chunk(self, delta: dict[str, str], finish: str | None = None, **more: object) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": [choice], **more}
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Model(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.released = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that was killed in the middle of an answer is no error."""

    @property
    def port(self) -> int:
        return self.server_address[1]

    def release(self) -> None:
        """Let every answer that waits go on, now and later."""
        self.released.set()

    def settings(self) -> str:
        """Return pi's models.json for this model: `loop/fake-1`."""
        compat = {"supportsDeveloperRole": False, "supportsReasoningEffort": False}
        provider = {
            "baseUrl": f"http://127.0.0.1:{self.port}/v1",
            "api": "openai-completions",
            "apiKey": "sk-loop",
            "compat": compat,
            "models": [{"id": MODEL, "contextWindow": 32000, "maxTokens": 4096}],
        }
        return json.dumps({"providers": {"loop": provider}})


@contextmanager
def model() -> Iterator[Model]:
    """Serve a model until the block ends."""
    server = Model()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release()
        server.shutdown()
        server.server_close()
        thread.join()
