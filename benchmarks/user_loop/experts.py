"""Fake experts of known skill behind a local HTTP server, and the commands of a user who has only these experts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from benchmarks.harness import ROOT
from coe.cli import app
from coe.measuring.probes import probe_of, shipped_rows

CATEGORIES = (
    *("code", "math", "natural_science", "logic_reasoning", "business_finance"),
    *("law", "medicine", "humanities", "social_science", "general_knowledge"),
    *("creative_writing", "multilingual", "everyday", "general"),
)


@dataclass(frozen=True)
class Skill:
    """Probability of a right answer: `usual`, or that of `special` by category; `price` is dollars per million tokens,
    of input and output."""

    usual: float
    price: tuple[float, float]
    special: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, category: str) -> float:
        return self.special.get(category, self.usual)


class Experts(BaseHTTPRequestHandler):
    """A model server for all experts: whether an answer is right depends on seed, expert and prompt alone."""

    answers: Mapping[str, tuple[str, str, str]] = {}
    skills: Mapping[str, Skill] = {}
    seed = 0
    url = ""
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        model, prompt = body["model"], body["messages"][-1]["content"]
        text = self._answer(model, prompt)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4 + 1}
        usage["total_tokens"] = sum(usage.values())
        head: dict[str, Any] = {"id": "a", "created": 0, "model": model}
        message = {"role": "assistant", "content": text}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = head | {"object": "chat.completion", "choices": [choice], "usage": usage}
            self._send(json.dumps(whole), "application/json")
            return
        choice = {"index": 0, "delta": message, "finish_reason": "stop"}
        chunks = [
            head | {"object": "chat.completion.chunk", "choices": [choice]},
            head | {"object": "chat.completion.chunk", "choices": [], "usage": usage},
        ]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self._send(f"{events}data: [DONE]\n\n", "text/event-stream")

    def _answer(self, model: str, prompt: str) -> str:
        if prompt not in self.answers:
            return "I do not know."
        category, right, wrong = self.answers[prompt]
        draw = int(hashlib.sha256(f"{self.seed} {model} {prompt}".encode()).hexdigest()[:8], 16) / 2**32
        return right if draw < self.skills[model][category] else wrong

    def _send(self, text: str, media_type: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def known_answers() -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield each shipped prompt, with its category, a right answer and a wrong one."""
    files = (ROOT / "tests" / "probes" / "answers").glob("*.jsonl")
    known = {one["id"]: one for file in files for one in map(json.loads, file.read_text().splitlines())}
    for row in shipped_rows():
        found = {key: known[row["id"]][key] for key in ("right", "wrong")}
        probe = probe_of(row, CATEGORIES)
        right = found["right"][0] if found["right"] else str(probe.reference)
        wrong = found["wrong"][0] if found["wrong"] else "I do not know"
        yield probe.prompt, (probe.category, right, wrong)


@contextmanager
def serving(skills: Mapping[str, Skill]) -> Iterator[type[Experts]]:
    """Run the server; yields its class, whose `seed` and `skills` may be set, and whose `url` is its base URL."""

    experts = type("Serving", (Experts,), {"answers": dict(known_answers()), "skills": skills})
    assert issubclass(experts, Experts)
    server = ThreadingHTTPServer(("127.0.0.1", 0), experts)
    experts.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield experts
    finally:
        server.shutdown()
        server.server_close()


def declare(folder: Path, experts: type[Experts], names: Sequence[str]) -> None:
    """Write experts.yaml, with prices and without an assignment."""
    rows = [
        {
            "name": name,
            "model": name,
            "runtime": "external",
            "base_url": experts.url,
            "parameters": {"max_tokens": 1000},
            "prices": dict(zip(("input", "output"), experts.skills[name].price, strict=True)),
        }
        for name in names
    ]
    categories = [{"name": name, "description": name} for name in CATEGORIES]
    file = {"version": 1, "categories": categories, "experts": rows}
    (folder / "experts.yaml").write_text(json.dumps(file))


def command(folder: Path, *words: str) -> dict[str, Any]:
    """Run a command of `coe` in a folder; returns its JSON."""
    result = CliRunner().invoke(app, [*words, "--json", "--config", str(folder / "experts.yaml")])
    if not result.stdout:
        raise SystemExit(f"coe {' '.join(words)}: {result.exception!r}\n{result.stderr}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report
