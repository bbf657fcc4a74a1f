"""Tests the wheel as users meet it: a fresh environment away from the repository, a gateway, a request, the page.

    .venv/bin/python scripts/try_wheel.py [WHEEL]

WHEEL is by default the one in dist/, which `make wheel` builds. Needs a package index. Exits 1 with the reason when
something is not as the installation page says.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from coe.fleet.specs import free_port

ROOT = Path(__file__).parent.parent
START_LIMIT = 300.0
"""Seconds, enough for a busy machine. The wait also ends when the process ends."""
PACKED = (
    *(f"{package}/py.typed" for package in ("coe", "gateway", "routers")),
    *(f"gateway/ui/assets/{name}" for name in ("index.html", "vendor/lit-html.js", "vendor/lit-html.LICENSE")),
    *(f"routers/starter/router/{name}" for name in ("manifest.json", "encoder.onnx")),
    *(f"licenses/{name}" for name in ("LICENSE", "NOTICE")),
)
HEAVY = ("torch", "sklearn", "scipy", "onnx", "transformers")
QUESTIONS = {
    "code": "Write a Python function that reverses a linked list",
    "law": "Can my landlord keep the deposit after the lease has ended?",
}
DECLARED = """\
version: 1
categories:
  - {name: code, description: "Write, debug, explain and review programs"}
  - {name: law, description: "Contracts, statutes, cases, rights and duties"}
  - {name: general, description: "Greetings, anything unclear"}
experts:
  - {name: code-expert, model: m, runtime: external, base_url: "http://127.0.0.1:EXPERT/v1"}
  - {name: law-expert, model: m, runtime: external, base_url: "http://127.0.0.1:EXPERT/v1"}
assignment: {code: code-expert, law: law-expert, general: law-expert}
"""
ANSWER = {
    "id": "a",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}]}


class Expert(BaseHTTPRequestHandler):
    """A server that lists one model, and gives every chat the same answer."""

    def do_GET(self) -> None:
        self._send(MODELS)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(ANSWER)

    def _send(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def main() -> None:
    (wheel,) = [Path(sys.argv[1])] if len(sys.argv) > 1 else (ROOT / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expect(all(any(name.endswith(one) for name in names) for one in PACKED), f"{wheel} lacks one of {PACKED}")
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        coe = install(wheel, Path(folder) / "venv")
        sys.stdout.write(f"wheel: installed after {time.monotonic() - began:.1f} s\n")
        python = str(Path(folder) / "venv" / "bin" / "python")
        heavy = run(python, "-c", f"import importlib.util as u; print([n for n in {HEAVY} if u.find_spec(n)])").strip()
        expect(heavy == "[]", f"serving installs {heavy}, which only training needs")
        use = run(python, "-c", "from routers.kernel import IMPLEMENTATION as i; print(i)").strip()
        compiled = use == "the compiled kernel"
        expect(compiled == ("-any.whl" not in wheel.name), f"{wheel.name}: the fast heads use {use}")
        (Path(folder) / "routers").mkdir()  # as in many web applications
        (Path(folder) / "routers" / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
        with _expert() as expert:
            (Path(folder) / "experts.yaml").write_text(DECLARED.replace("EXPERT", str(expert)))
            _try(coe, Path(folder), expert)
        # The packaged version is in use, and a command that needs an extra names it.
        listed = json.loads(run(coe, "versions", "router", "--json", cwd=Path(folder)))["kinds"][0]
        expect([one["version"] for one in listed["versions"]] == [listed["in_use"]], f"versions: {listed}")
        train = subprocess.run([coe, "train"], cwd=folder, env=environ(), capture_output=True, text=True, check=False)
        named = train.returncode == 1 and "composition-of-experts[train]" in train.stderr
        expect(named, f"coe train: {train.stderr}")
    sys.stdout.write("wheel: all good\n")


def _try(coe: str, folder: Path, expert: int) -> None:
    began = time.monotonic()
    with gateway(coe, folder) as url:
        sys.stdout.write(f"wheel: ready after {time.monotonic() - began:.1f} s\n")
        for category, question in QUESTIONS.items():
            _check_routing(url, question, category)
        for path, text in (("/ui/", b"<html"), ("/ui/vendor/lit-html.js", b"render")):
            with urllib.request.urlopen(url + path, timeout=30) as response:
                expect(text in response.read(), f"{path} is not the page")
        (folder / "init").mkdir()  # `coe init` writes a declaration that `coe check` accepts with the packaged router
        run(coe, "init", "--endpoint", f"http://127.0.0.1:{expert}/v1", cwd=folder / "init")
        run(coe, "check", "--live", cwd=folder / "init")


def install(wheel: Path, venv: Path, *, extra: str = "") -> str:
    """Return the command `coe` of a fresh environment with the wheel, and one of its extras if given."""
    run(sys.executable, "-m", "venv", str(venv))
    what = f"composition-of-experts{f'[{extra}]' if extra else ''} @ {wheel.resolve().as_uri()}"
    run(str(ROOT / "scripts" / "uv-install"), str(venv), "--constraint", str(ROOT / "constraints.txt"), what)
    return str(venv / "bin" / "coe")


@contextmanager
def _expert() -> Iterator[int]:
    """Yield the port of a running Expert."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Expert) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def gateway(coe: str, folder: Path) -> Iterator[str]:
    """Run `coe serve` in `folder`, which has experts.yaml; yields its URL once it is ready."""
    port = free_port()
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [coe, "serve", "--port", str(port)], cwd=folder, env=environ(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health/ready", process, folder / "gateway.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            alive = process.poll() is None and time.monotonic() < deadline
            expect(alive, f"the gateway is not ready:\n{log.read_text()}")
            time.sleep(0.1)


def _check_routing(url: str, question: str, category: str) -> None:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": question}]}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        found = (response.headers["x-coe-category"], response.headers["x-coe-expert"])
        expect(found == (category, f"{category}-expert"), f"{question!r} was routed to {found}")
        answer: dict[str, Any] = json.load(response)
        expect(answer["choices"][0]["message"]["content"] == "yes", f"not the expert's answer: {answer}")


def environ() -> dict[str, str]:
    """Return an environment that leads to nothing of the repository."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environ(), capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"wheel: {otherwise}")


if __name__ == "__main__":
    main()
