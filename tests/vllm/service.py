"""`coe up` as a process, requests to it, and the state of its servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from coe.fleet.specs import free_port
from tests.fleet.fake_fleet import processes_logging_to

ROOT = Path(__file__).parent.parent.parent
START = 300.0
"""Seconds within which a server must have started, on a busy machine."""
SPARE = "Hi"
"""The answer of the spare expert."""


class Service:
    """`with Service(folder, bin_folder=...)`, then `declare` and `start`. `bin_folder` holds the vllm command."""

    def __init__(self, folder: Path, *, bin_folder: Path) -> None:
        self.folder = folder
        self._bin_folder = bin_folder
        self._log = folder / "up.log"
        self._port, self._spare_port = free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def declare(self, *experts: dict[str, Any], **more: Any) -> None:
        """Writes experts.yaml: these experts, the stand-in, and more sections."""
        stand_in = {"name": "stand_in", "model": "a-model", "runtime": "external", "base_url": self._spare_url}
        declared = {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in ("code", "art", "general")],
            "experts": [*experts, stand_in],
            "assignment": {"general": experts[0]["name"]},
            "policy": {"max_attempts": 4},  # a server that is just dying breaks off each of its experts' connections
            **more,
        }
        draft = self.folder / "draft"
        draft.write_bytes(orjson.dumps(declared))
        draft.replace(self.folder / "experts.yaml")

    @property
    def _spare_url(self) -> str:
        return f"http://127.0.0.1:{self._spare_port}/v1"

    def start(self, *, executor: str = "local") -> None:
        stand_in = (
            sys.executable,
            "tests/fleet/fake_server.py",
            str(self._spare_port),
            "ok",
            str(self.folder / "pids"),
        )
        self._run(*stand_in, OMP_NUM_THREADS="1")
        host = (sys.executable, "-m", "tests.vllm.host", str(self.folder / "experts.yaml"), str(self._port), executor)
        process = self._run(*host, PATH=f"{self._bin_folder}:{os.environ['PATH']}")
        deadline = time.monotonic() + START
        while "CoE answers at" not in self.output:
            assert process.poll() is None, f"coe up ended:\n{self.output}"
            assert time.monotonic() < deadline, f"coe up takes too long:\n{self.output}"
            time.sleep(0.1)

    def _run(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environ, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    @property
    def output(self) -> str:
        """The output of `coe up`."""
        return self._log.read_text(errors="replace")

    def wait_for_line(self, text: str, *, times: int = 1, within: float = START) -> None:
        """Waits until its output has contained `text` that many times."""
        deadline = time.monotonic() + within
        while self.output.count(text) < times:
            assert time.monotonic() < deadline, f"not printed {times} times: {text!r}\n{self.output}"
            time.sleep(0.1)

    def send_chat(self, model: str, text: str = "Hello, who are you?", **body: Any) -> httpx.Response:
        """One chat, not streamed."""
        message = {"role": "user", "content": text}
        body_sent = {"model": model, "messages": [message], "max_tokens": 12, "temperature": 0, **body}
        return self.client.post("/v1/chat/completions", json=body_sent)

    def until_answered(self, model: str) -> None:
        """Until the expert itself gives an answer."""
        deadline = time.monotonic() + START
        while not _is_of(model, response := self.send_chat(model, max_tokens=1)):
            assert time.monotonic() < deadline, f"{model} does not come back: {response.text}\n{self.output}"
            time.sleep(0.5)

    @property
    def server(self) -> str:
        """The URL of the base model's server."""
        return self.servers[0]

    @property
    def servers(self) -> list[str]:
        """All of its replicas."""
        endpoints = orjson.loads((self.folder / ".coe" / "endpoints.json").read_bytes())
        return [str(one["base_url"]).removesuffix("/v1") for one in endpoints["base"]]

    def metric(self, name: str, *, server: str = "") -> float:
        """A metric of the vLLM server itself, summed over its series."""
        lines = httpx.get(f"{server or self.server}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    @property
    def host(self) -> subprocess.Popen[bytes]:
        """The process of `coe up`."""
        return self._processes[1]

    def family(self) -> list[psutil.Process]:
        """The processes of its servers, wherever they run on this machine."""
        return processes_logging_to(self.folder / ".coe" / "logs")

    def process(self, word: str) -> psutil.Process:
        """The vLLM process whose command line holds this word; not its supervisor, which has that line too."""
        for one in psutil.Process(self.host.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # servers start processes that end at once
                line = " ".join(one.cmdline())
                if word in line and "supervisor.py" not in line:
                    return one
        raise AssertionError(f"there is no process with {word!r}")


def _is_of(model: str, response: httpx.Response) -> bool:
    return response.status_code == 200 and response.headers["x-coe-expert"] == model


def text_of(response: httpx.Response) -> str:
    """The answer's text."""
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@contextmanager
def lines_of(service: Service, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a streamed chat."""
    with service.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        yield (orjson.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
