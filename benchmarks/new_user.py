"""A new user without the repository: install the wheel, init, tune, chat, feedback, retrain; the time of each step.

    .venv/bin/python -m benchmarks.new_user [WHEEL]

WHEEL is by default the one in dist/, which `make wheel` builds. Three local servers stand for model providers. Each
answers the shipped probes of its own categories right with probability 0.9 and others with 0.45, the same at each
request. The true quality of the plan, by these probabilities, is printed beside the best possible one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from coe.measuring.probes import probe_of, shipped_rows
from scripts.try_wheel import gateway, install, run

ROOT = Path(__file__).parent.parent
GOOD, POOR = 0.9, 0.45
LATENCY = 0.05
"""Seconds that a server takes for an answer."""
STRENGTHS: Mapping[str, tuple[str, ...]] = {
    "engineer": ("code", "math", "natural_science", "logic_reasoning", "business_finance"),
    "scholar": ("law", "medicine", "humanities", "social_science", "general_knowledge"),
    "writer": ("creative_writing", "multilingual", "everyday", "general"),
}
CATEGORIES = tuple(category for own in STRENGTHS.values() for category in own)
PRICES = {"engineer": (0.5, 1.5), "scholar": (0.5, 1.5), "writer": (0.5, 1.5)}
BUDGET = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?")
    wheel = parser.parse_args().wheel or next((ROOT / "dist").glob("*.whl"))
    answers = dict(known_answers())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with timed("install the wheel with its extra `plan`"):
            coe = install(wheel, folder / "venv", extra="plan")
        size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if not file.is_symlink())
        print(f"{size / 1e6:.0f} MB")
        with providers(answers) as urls:
            with timed("coe init"):
                run(coe, "init", *(word for url in urls for word in ("--endpoint", url)), cwd=folder)
            declare_prices(folder / "experts.yaml")
            with timed(f"coe tune --budget {BUDGET}"):
                tuned = json.loads(
                    run(coe, "tune", "--out", "scores", "--budget", str(BUDGET), "--yes", "--json", cwd=folder)
                )
            with timed("coe serve, two chats and their feedback"), gateway(coe, folder) as url:
                for question in ("Write a Python function that reverses a list", "May my landlord raise the rent?"):
                    send_feedback(url, chat(url, question))
            with timed("install its extra `train`"):
                install(wheel, folder / "venv", extra="train")
            with timed("coe retrain"):
                print(run(coe, "retrain", "--probes", "scores", cwd=folder), end="")
    report(tuned, time.monotonic() - began)


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
def providers(answers: Mapping[str, tuple[str, str, str]]) -> Iterator[list[str]]:
    """Run a server for each expert; yields their base URLs."""
    servers = []
    for name in STRENGTHS:
        handler = type("Provider", (Provider,), {"name": name, "answers": answers})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}/v1" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


class Provider(BaseHTTPRequestHandler):
    """A model server that answers known prompts right or wrong, by its skill in their category."""

    name = model = ""
    delay = LATENCY
    answers: Mapping[str, tuple[str, str, str]] = {}
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(json.dumps({"object": "list", "data": [{"id": self.name, "object": "model"}]}), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(self.delay)
        self.model, prompt = body["model"], body["messages"][-1]["content"]
        text = self._answer(prompt)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4 + 1}
        usage["total_tokens"] = sum(usage.values())
        head: dict[str, Any] = {"id": "a", "created": 0, "model": self.model}
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

    def _answer(self, prompt: str) -> str:
        if prompt not in self.answers:
            return "I do not know."
        category, right, wrong = self.answers[prompt]
        draw = int(hashlib.sha256(f"{self.name} {prompt}".encode()).hexdigest()[:8], 16) / 2**32
        return right if draw < skill(self.name, category) else wrong

    def _send(self, text: str, media_type: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def skill(name: str, category: str) -> float:
    """The probability that an expert answers a prompt of the category right."""
    return GOOD if category in STRENGTHS[name] else POOR


def declare_prices(file: Path) -> None:
    """Declare the experts' prices, as a user would, because `coe init` cannot find them."""
    text = file.read_text()
    for name, (given, written) in PRICES.items():
        line = re.compile(rf"^(\s*)(- )?model: ['\"]?{name}['\"]?.*$", re.MULTILINE)
        text, count = line.subn(
            lambda m, prices=(given, written): (
                f"{m[0]}\n{m[1]}{'  ' if m[2] else ''}prices: {{input: {prices[0]}, output: {prices[1]}}}"
            ),
            text,
        )
        if count != 1:
            raise SystemExit(f"new user: {file} declares {name} {count} times:\n{text}")
    file.write_text(text)


def chat(url: str, question: str) -> str:
    """Send a question; returns the id of the request."""
    body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
    with post(f"{url}/v1/chat/completions", body) as response:
        headers = response.headers
        print(f"  {question!r}: {headers['x-coe-category']}, answered by {headers['x-coe-expert']}")
        return str(headers["x-request-id"])


def send_feedback(url: str, request_id: str) -> None:
    post(f"{url}/v1/feedback", {"request_id": request_id, "thumb": "up"}).close()


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def report(tuned: Mapping[str, Any], seconds: float) -> None:
    plan = {row["category"]: row["expert"] for row in tuned["plan"]["assignment"]}
    declared = {row["category"] for row in tuned["plan"]["assignment"] if row["pinned"]}
    true = [skill(plan[category], category) for category in CATEGORIES]
    best = [skill(plan[one], one) if one in declared else GOOD for one in CATEGORIES]
    status = tuned["status"]
    print(f"scores: {status['scored']}, ${status['spent']:.2f}; {tuned['reason']}")
    print(f"true quality of the plan: {sum(true) / len(true):.3f}; of the best plan: {sum(best) / len(best):.3f}")
    print(f"declared, so not planned: {', '.join(sorted(declared))}")
    print(f"in all: {seconds:.0f} s")


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:7.1f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
