"""Tests the service as a new user meets it: a clean clone, `make serve`, README's example, the OpenAI client, the page.

    .venv/bin/python scripts/end_to_end.py [FOLDER]

FOLDER receives a copy of the router that the first start trains. Exits 1 with the reason if something is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from coe.fleet.specs import free_port

ROOT = Path(__file__).parent.parent
READY = "CoE answers at"
START_LIMIT = 1500.0
STOP_LIMIT = 60.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "coe"
        _run("git", "clone", "--quiet", str(ROOT), str(clone))
        port = free_port()
        with _serving(clone, port, "first"):
            experts = _ask_two_questions(port)
            readme = re.search(r"```python\n(.*?)```", (clone / "README.md").read_text(encoding="utf-8"), re.DOTALL)
            assert readme is not None
            code = readme[1].replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            output = _run(str(clone / ".venv" / "bin" / "python"), "-c", code)
            _expect(bool(output.strip()), "the README's example printed nothing")
            _check_log(clone, experts)
            if shutil.which("chromium"):
                python = str(clone / ".venv" / "bin" / "python")
                _run(python, "-m", "tests.ui.walk", f"http://127.0.0.1:{port}", cwd=clone)
            else:
                sys.stdout.write("end to end: chromium is not installed, so the page is not looked at\n")
        if len(sys.argv) > 1:
            shutil.copytree(clone / ".coe" / "artifacts" / "router", Path(sys.argv[1]) / "router", dirs_exist_ok=True)
        with _serving(clone, port, "second"):
            _ask_two_questions(port)
    sys.stdout.write("end to end: all good\n")


@contextmanager
def _serving(clone: Path, port: int, which: str) -> Iterator[None]:
    """Runs `make serve` until the block ends."""
    begin = time.monotonic()
    environ = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV")}
    process = subprocess.Popen(
        ("make", "serve"),
        cwd=clone,
        env=environ | {"COE_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(f"  | {line}")
            if READY in line:
                break
            _expect(time.monotonic() - begin < START_LIMIT, "make serve takes too long")
        else:
            raise SystemExit("end to end: make serve ended before it was ready")
        sys.stdout.write(f"{which} start: ready after {time.monotonic() - begin:.0f} s\n")
        yield
    finally:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        try:
            process.communicate(timeout=STOP_LIMIT)
        finally:
            left = _processes_of(clone)
            for stray in left:
                stray.kill()
    _expect(not left, f"processes left behind: {left}")


def _ask_two_questions(port: int) -> set[str]:
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)
    plain = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=[{"role": "user", "content": "Write a Python function that reverses a list"}],
        max_tokens=24,
    )
    _expect(bool(plain.parse().choices[0].message.content), "the non-streaming answer is empty")
    streamed = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Write a poem about the sea"}], max_tokens=24, stream=True
    )
    chunks = [chunk.choices[0].delta.content for chunk in streamed.parse() if chunk.choices]
    _expect(sum(bool(chunk) for chunk in chunks) > 3, f"the stream came in too few pieces: {chunks}")
    experts = {answer.headers["x-coe-expert"] for answer in (plain, streamed)}
    _expect(len(experts) == 2, f"both questions went to {experts}")
    return experts


def _check_log(clone: Path, experts: set[str]) -> None:
    records: list[dict[str, Any]] = []
    for _ in range(50):  # records are written in the background
        lines = _run(str(clone / ".venv" / "bin" / "coe"), "log", "--json", cwd=clone).splitlines()
        records = [json.loads(line) for line in lines]
        if {record["expert"] for record in records} >= experts:
            break
        time.sleep(0.2)
    _expect({record["expert"] for record in records} >= experts, f"the log lacks one of {experts}")
    _expect({record["outcome"] for record in records} == {"ok"}, f"not all went well: {records}")
    reported = _run(str(clone / ".venv" / "bin" / "coe"), "route", "Prove that sqrt(2) is irrational", cwd=clone)
    _expect("math" in reported, f"coe route says: {reported}")
    _run(str(clone / ".venv" / "bin" / "coe"), "check", cwd=clone)


def _processes_of(clone: Path) -> list[psutil.Process]:
    """Processes that were started from the clone, by their command line or folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(clone) in word for word in (*process.cmdline(), process.cwd())):
                found.append(process)
    return found


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    _expect(done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"end to end: {otherwise}")


if __name__ == "__main__":
    main()
