"""A tiny server with the command line and the documented pages of one engine: `fake_engine.py ENGINE ARGUMENTS`.

Flags that the engine does not know end it, as does what would end the real one. It writes each administrative request
to its output.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

FLAGS = {
    "llama-server": (
        ("--model", "--hf-repo", "--alias", "--ctx-size", "--threads"),
        ("--offline", "--metrics", "--no-ui"),
    ),
    "sglang": (
        ("--model-path", "--served-model-name", "--tensor-parallel-size", "--context-length"),
        ("--enable-metrics", "--enable-memory-saver", "--enable-weights-cpu-backup"),
    ),
    "vllm": (("--served-model-name", "--max-model-len"), ("--enable-sleep-mode",)),
    "transformers": (("--device", "--dtype"), ()),
}
CHAT = {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}
Page = Callable[[dict[str, Any]], tuple[int, Any]]


class State:
    """`in_memory` are the parts on the device, or the models of Ollama; a server answers with all parts."""

    parts = frozenset({"weights", "kv_cache", "cuda_graph"})

    def __init__(self, engine: str, models: list[str]) -> None:
        self.engine, self.models = engine, models
        self.in_memory = set() if engine == "ollama" else set(self.parts)
        self.stale = False
        self.backed_up = "--enable-weights-cpu-backup" in sys.argv

    def pages(self) -> dict[str, Page]:
        own = {
            "sglang": {
                "/flush_cache": lambda body: (200, {}),
                "/release_memory_occupation": self.release,
                "/resume_memory_occupation": self.resume,
                "/update_weights_from_disk": self.read_weights,
            },
            "vllm": {
                "/sleep": self.release,
                "/wake_up": self.resume,
                "/collective_rpc": self.read_weights,
            },
            "ollama": {"/api/generate": self.generate},
        }
        return own.get(self.engine, {})

    def release(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.engine == "sglang" and "--enable-memory-saver" not in sys.argv:
            os._exit(3)
        self.in_memory.clear()
        self.stale = not self.backed_up if self.engine == "sglang" else body.get("level") == ["2"]
        return 200, None

    def resume(self, body: dict[str, Any]) -> tuple[int, Any]:
        tags = set(body.get("tags") or self.parts)
        if self.engine == "sglang" and tags & self.in_memory:
            os._exit(4)  # as a KeyError in its scheduler
        self.in_memory |= tags if self.engine == "sglang" or "kv_cache" not in tags else self.parts
        return 200, None

    def read_weights(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.stale = "weights" not in self.in_memory or body.get("model_path", self.models[0]) not in self.models
        return 200, {}

    def generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.full_name(body["model"])
        if model not in self.models:
            return 404, {"error": f"model '{model}' not found"}
        assert body.keys() <= {"model", "keep_alive", "stream"}, body
        assert body["keep_alive"] in (0, -1), body
        if body["keep_alive"] == 0:
            self.in_memory.discard(model)
        else:
            self.in_memory.add(model)
        return 200, {"model": body["model"], "done": True}

    def full_name(self, model: str) -> str:
        return f"{model}:latest" if self.engine == "ollama" and ":" not in model else model

    def listed(self, model: str) -> dict[str, Any]:
        return {"name": model, "model": model, "size": 1, "size_vram": 0}

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        model = self.full_name(body["model"])
        if model not in self.models:
            return 404, {"error": {"message": f"model '{model}' not found"}}
        if self.engine == "ollama":
            self.in_memory.add(model)
        elif self.in_memory != self.parts or self.stale:
            os._exit(5)
        return 200, CHAT

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/in-memory":
            return 200, sorted(self.in_memory)
        if self.engine == "ollama":
            loaded = [self.listed(name) for name in self.in_memory]
            known = {"/api/version": {"version": "0"}, "/api/ps": {"models": loaded}}
            return (200, known[path]) if path in known else (404, "404 page not found")
        return (200, {}) if path == "/health" else (404, {})


def handler(state: State) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*state.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if path == "/v1/chat/completions":
                self.reply(*state.chat(body))
                return
            sys.stdout.write(f"{self.path} {json.dumps(body)}\n")
            sys.stdout.flush()
            page = state.pages().get(path)
            self.reply(*(page(body | query) if page else (404, {"detail": "Not Found"})))

        def reply(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main(engine: str, arguments: list[str]) -> None:
    if engine == "ollama":
        assert arguments == ["serve"], arguments
        host, _, port = os.environ["OLLAMA_HOST"].partition(":")
        models = ["tiny:1b", "second:1b", "third:latest"]
    else:
        valued, switches = FLAGS[engine]
        parser = argparse.ArgumentParser(prog=engine, allow_abbrev=False)
        parser.add_argument("words", nargs="*")
        for flag in ("--host", "--port", *valued):
            parser.add_argument(flag)
        for flag in switches:
            parser.add_argument(flag, action="store_true")
        given = parser.parse_args(arguments)
        host, port = given.host, given.port
        models = [value for value in vars(given).values() if isinstance(value, str)] + given.words
    ThreadingHTTPServer((host, int(port)), handler(State(engine, models))).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
