"""Corrections by hand: 26 misrouted prompts are corrected, then a round; do near copies follow, and does the rest stay?

The prompts of corrections.jsonl are real misroutes of the starter router, each with three paraphrases that nothing
learns from. A gateway serves them with a fake expert, feedback goes to /v1/feedback, and the round is `coe retrain`.
Others are 2,000 prompts of DATA/category/train.parquet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ANSWER, ROOT, running, trained

PORT, OTHERS, MAX_CHARACTERS = 18191, 2_000, 4_000
CASES = [json.loads(line) for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
PROMPTS = [(case["prompt"], case["category"]) for case in CASES]
PARAPHRASES = [(text, case["category"]) for case in CASES for text in case["paraphrases"]]


class Expert(BaseHTTPRequestHandler):
    """Answers every chat with `ok`."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER.encode())

    def log_message(self, *args: Any) -> None:
        """Write no line for a request."""


def run(data: Path | None, home: Path) -> None:
    """Print the figures. `home` is a state folder with the starter router, trained there if it has none."""
    trained(home)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Expert)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(home / "artifacts", folder / "state" / "artifacts")
        text = (
            (ROOT / "experts.yaml").read_text(encoding="utf-8").replace("store_prompts: false", "store_prompts: true")
        )
        served = f"    runtime: external\n    base_url: http://127.0.0.1:{server.server_port}/v1"
        text = re.sub(r"^    runtime: transformers.*$", served, text, flags=re.MULTILINE)
        (folder / "experts.yaml").write_text(re.sub(r"^    memory_gb:.*\n", "", text, flags=re.MULTILINE))
        service = Service(folder)
        with running(service.words("serve", "--port", PORT), ready=f"{service.url}/health/ready", env=service.env):
            _play(service, _others(data) if data else [])
    server.shutdown()


class Service:
    """The gateway and the commands of a state folder."""

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"COE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}

    def words(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "coe.cli", *map(str, words), "--config", str(self.folder / "experts.yaml")]

    def command(self, *words: object) -> str:
        return subprocess.run(self.words(*words), env=self.env, check=True, stdout=subprocess.PIPE, text=True).stdout

    def post(self, path: str, **body: object) -> tuple[Any, dict[str, Any]]:
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers, json.loads(answer.read())

    def decisions(self, texts: list[str]) -> list[tuple[str, str]]:
        """Category and expert of each text by `coe route`."""
        source = self.folder / "texts.jsonl"
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        rows = [json.loads(line)["decision"] for line in self.command("route", "--input", source).splitlines()]
        return [(row["category"], row["expert"]) for row in rows]


def _play(service: Service, others: list[str]) -> None:
    texts = [text for text, _ in PARAPHRASES]
    before, kept = service.decisions(texts), service.decisions(others)
    misrouted = 0
    for prompt, category in PROMPTS:
        headers, _ = service.post("/v1/chat/completions", model="auto", messages=[{"role": "user", "content": prompt}])
        misrouted += headers["x-coe-category"] != category
        service.post("/v1/feedback", request_id=headers["x-request-id"], category=category)
    print(f"misrouted prompts {misrouted} of {len(PROMPTS)}, all corrected")
    began = time.monotonic()
    print(service.command("retrain").strip())
    print(f"`coe retrain` took {time.monotonic() - began:.1f} s")
    after, changed = service.decisions(texts), [a != b for a, b in zip(kept, service.decisions(others), strict=True)]
    time.sleep(3)  # the gateway applies a promotion within a second or two
    chats = [{"model": "auto", "messages": [{"role": "user", "content": text}]} for text in texts]
    live = [service.post("/v1/route", **chat)[1]["category"] for chat in chats]
    for name, found in (("before", [c for c, _ in before]), ("after", [c for c, _ in after]), ("in the gateway", live)):
        right = np.mean([category == wanted for category, (_, wanted) in zip(found, PARAPHRASES, strict=True)])
        print(f"paraphrases that follow, {name}: {right:.1%} of {len(texts)}")
    if others:
        print(f"decisions on other prompts that changed: {np.mean(changed):.2%} of {len(others)}")


def _others(data: Path) -> list[str]:
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(data / "category" / "train.parquet", columns=["prompt"])["prompt"].to_pylist()
    rows = np.random.default_rng(0).choice(len(texts), OTHERS, replace=False)
    return [texts[row][:MAX_CHARACTERS] for row in rows]
