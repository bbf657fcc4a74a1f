"""Experts in an Ollama that the user has started share a device: residency loads and unloads their models there."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coe.errors import ConfigError, ExpertAsleep
from coe.fleet.engines import ollama_keeper
from coe.fleet.planning import local_servers
from coe.fleet.probe import open_probe_session
from coe.fleet.process import TERMINATION_TIMEOUT
from coe.fleet.ray.fleet import running_cluster
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.fleet.residency.devices import plan_devices
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.socket_server import serve_residency
from coe.fleet.specs import ATTACHED, Timeouts
from coe.registry import ExpertSpec, Registry, load
from coe.settings import Settings
from tests.fleet.fake_fleet import QUICK
from tests.fleet.running_ollama import in_memory, running_ollama

pytestmark = pytest.mark.anyio
DECLARED = """
version: 1
categories: [{name: general, description: anything}]
residency: {devices: [{name: gpu0, memory_gb: 12}], max_wait: 0.2, wait_timeout: 30}
experts:
  - {name: tiny, model: "tiny:1b", runtime: ollama, base_url: "URL", memory_gb: 10, sleep_level: 2}
  - {name: third, model: third, runtime: ollama, base_url: "URL", memory_gb: 10}
assignment: {general: tiny}
"""


def declared(folder: Path, url: str, *, third: str = "third") -> Registry:
    file = folder / "experts.yaml"
    file.write_text(DECLARED.replace("URL", url).replace("model: third", f'model: "{third}"'))
    return load(file, environ={})


@asynccontextmanager
async def shared(registry: Registry, folder: Path, timeouts: Timeouts) -> AsyncIterator[ResidencyClient]:
    """Residency of the experts, as a gateway sees it."""
    specs, _ = local_servers(registry.experts, cache=folder, logs=folder / "logs", python=Path(sys.executable))
    devices = plan_devices(registry, specs)
    first, socket = registry.assignment.values(), folder / "s"
    residency = Residency(devices, first=first, max_wait=0.2, report=print, timeouts=timeouts)
    async with residency, serve_residency(residency, socket), connected_client(socket) as client:
        yield client


async def test_residency_swaps_the_models_of_an_ollama_that_runs(tmp_path: Path) -> None:
    async with running_ollama() as root:
        registry = declared(tmp_path, f"{root}/v1")
        async with shared(registry, tmp_path, Timeouts()) as client:
            assert await in_memory(root) == ["tiny:1b"]
            for expert, loaded in (("third", ["third:latest"]), ("tiny", ["tiny:1b"])):
                deadline = asyncio.get_running_loop().time() + 30
                (await client.acquire(expert, deadline=deadline, stand_in=""))()
                assert await in_memory(root) == loaded
        assert await in_memory(root) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu-1:11434/v1",
        "http://127.evil.example:11434/v1",
        "http://localhost.example:11434/v1",
        "http://[2001:db8::1]:11434/v1",
        "http://0.0.0.0:11434/v1",
        "https://127.0.0.1/v1",
        "http://127.0.0.1:11434",
    ],
)
def test_only_an_ollama_of_this_machine_may_be_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"an Ollama of this machine; write http://127\.0\.0\.1:11434/v1, or use"):
        declared(tmp_path, url)


@pytest.mark.parametrize("root", ["http://127.0.0.1:11434", "http://localhost:11434", "http://[::1]:11434"])
def test_addresses_of_this_machine_reach_its_ollama(tmp_path: Path, root: str) -> None:
    registry = declared(tmp_path, f"{root}/v1")
    [spec, _], endpoints = local_servers(
        registry.experts, cache=tmp_path, logs=tmp_path, python=Path(sys.executable), base_folder=tmp_path
    )
    assert (spec.root, spec.argv[-2:], endpoints["tiny"].base_url) == (root, (root, "tiny:1b"), f"{root}/v1")


def test_experts_share_a_model_however_its_name_and_address_are_written(tmp_path: Path) -> None:
    written = [
        ("qwen", "http://127.0.0.1:11434/v1"),
        ("qwen:latest", "http://localhost:11434/v1/"),
        ("qwen:7b", "http://localhost:11434/v1"),
        ("qwen", "http://127.0.0.1:11435/v1"),
    ]
    experts = [
        ExpertSpec(name=f"e{number}", model=model, runtime="ollama", base_url=url)
        for number, (model, url) in enumerate(written)
    ]
    specs, endpoints = local_servers(experts, cache=tmp_path, logs=tmp_path, python=Path(sys.executable))
    assert [spec.key for spec in specs] == ["e0", "e2", "e3"]
    assert endpoints["e0"] == endpoints["e1"]


def test_an_ollama_that_runs_has_no_replicas(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tiny' is one model in the Ollama at base_url; remove `replicas`"):
        declared(tmp_path, 'http://127.0.0.1:11434/v1", replicas: 3, system_prompt: "x')


async def test_a_cluster_has_no_ollama_of_this_machine(tmp_path: Path) -> None:
    registry = declared(tmp_path, "http://127.0.0.1:11434/v1").model_copy(update={"residency": None})
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    with pytest.raises(ConfigError, match=r"'tiny': base_url: .* nodes of a cluster do not reach"):
        async with running_cluster(settings, registry, ray=None, publish=print):
            raise AssertionError("it started")


class Drip(BaseHTTPRequestHandler):
    """Answers loads at once; the page of loaded models takes half a minute, with a byte every 50 ms."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for _ in range(600):
                self.wfile.write(b" ")
                time.sleep(0.05)
            self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


SHORT_UNLOAD = """
import sys
from coe.fleet.engines import ollama_keeper
ollama_keeper.UNLOAD_TIMEOUT = 0.2
sys.exit(ollama_keeper.main(*sys.argv[1:]))
"""


def test_the_time_to_unload_is_bounded_however_ollama_answers() -> None:
    assert min(Timeouts().grace, TERMINATION_TIMEOUT) > ollama_keeper.UNLOAD_TIMEOUT
    server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = (sys.executable, "-c", SHORT_UNLOAD, f"http://127.0.0.1:{server.server_port}", "tiny")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == ATTACHED
        keeper.terminate()
        assert "does not unload 'tiny': 0.2 s have passed" in keeper.stdout.read()
        assert keeper.wait() == 128 + signal.SIGTERM
    server.shutdown()
    server.server_close()


def test_the_end_of_the_time_to_unload_is_named_also_during_a_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def expired(*_: object) -> None:
        raise urllib.error.URLError(TimeoutError("4 s have passed"))  # as urllib wraps what a connection raises

    monkeypatch.setattr(ollama_keeper, "_request", expired)
    ollama_keeper._unload("http://127.0.0.1:11434", "tiny")
    assert capsys.readouterr().out.endswith("does not unload 'tiny': 4 s have passed\n")


PARENT = """
import asyncio, sys
from pathlib import Path
from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.registry import load

async def main(file):
    here = {"cache": file.parent, "logs": file.parent / "logs", "python": Path(sys.executable)}
    specs, _ = local_servers(load(file, environ={}).experts[:1], **here)
    async with Fleet(specs, report=lambda line: None):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_sigkill_of_the_fleet_unloads_its_models_and_leaves_those_of_others(tmp_path: Path) -> None:
    async with running_ollama() as root, open_probe_session() as session:
        declared(tmp_path, f"{root}/v1")
        async with session.post(f"{root}/api/generate", json={"model": "second:1b", "keep_alive": -1}):
            pass
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, str(tmp_path / "experts.yaml"), stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        assert await parent.stdout.readline() == b"ready\n"
        assert await in_memory(root) == ["second:1b", "tiny:1b"]
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(60):
            while await in_memory(root) != ["second:1b"]:
                await asyncio.sleep(0.05)


async def test_requests_get_the_reason_why_ollama_does_not_load_a_model_and_later_ones_wait_longer(
    tmp_path: Path,
) -> None:
    async with running_ollama() as root:
        registry = declared(tmp_path, f"{root}/v1", third="gone:1b")
        async with shared(registry, tmp_path, QUICK) as client:
            waits, why = [], r"does not load 'gone:1b': 404 .* run `ollama pull gone:1b`"
            for _ in range(2):
                deadline = asyncio.get_running_loop().time() + 60
                with pytest.raises(ExpertAsleep, match=why) as error:
                    await client.acquire("third", deadline=deadline, stand_in="")
                waits.append(error.value.retry_after)
    assert waits == [QUICK.first_restart, 2 * QUICK.first_restart]


def test_the_same_model_in_two_ollamas_needs_its_memory_twice(tmp_path: Path) -> None:
    file = tmp_path / "experts.yaml"
    file.write_text("""
version: 1
categories: [{name: general, description: anything}]
budget: {memory_gb: 15}
experts:
  - {name: a, model: "tiny:1b", runtime: ollama, base_url: "http://127.0.0.1:11434/v1", memory_gb: 10}
  - {name: b, model: "tiny:1b", runtime: ollama, base_url: "http://127.0.0.1:11434/v1", memory_gb: 10}
assignment: {general: a}
""")
    load(file, environ={})
    file.write_text(file.read_text().replace("11434", "11435", 1))
    with pytest.raises(ConfigError, match="the local experts need 20 GB together and memory_gb allows 15"):
        load(file, environ={})
