"""Fake experts of known skill behind a local HTTP server, and the commands of a user who has only these experts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from benchmarks.new_user import CATEGORIES as CATEGORIES
from benchmarks.new_user import Provider, known_answers
from coe.cli import app


@dataclass(frozen=True)
class Skill:
    """Probability of a right answer: `usual`, or that of `special` by category; `price` is dollars per million tokens,
    of input and output."""

    usual: float
    price: tuple[float, float]
    special: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, category: str) -> float:
        return self.special.get(category, self.usual)


class Experts(Provider):
    """A model server for all experts: whether an answer is right depends on seed, expert and prompt alone."""

    skills: Mapping[str, Skill] = {}
    seed = 0
    url = ""

    def _answer(self, prompt: str) -> str:
        if prompt not in self.answers:
            return "I do not know."
        category, right, wrong = self.answers[prompt]
        draw = int(hashlib.sha256(f"{self.seed} {self.model} {prompt}".encode()).hexdigest()[:8], 16) / 2**32
        return right if draw < self.skills[self.model][category] else wrong


@contextmanager
def serving(skills: Mapping[str, Skill]) -> Iterator[type[Experts]]:
    """Run the server; yields its class, whose `seed` and `skills` may be set, and whose `url` is its base URL."""

    experts = type("Serving", (Experts,), {"answers": dict(known_answers()), "delay": 0.0, "skills": skills})
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
