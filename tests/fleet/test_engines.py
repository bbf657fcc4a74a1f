"""Every inference engine follows the Protocol: planned, ready by a token, asleep, awake, ended.

The servers are stand-ins with the documented command lines and pages of each engine; tests/llama_cpp and tests/vllm use
real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coe.errors import FleetError
from coe.fleet.engines import ENGINES, find_problems, local_servers
from coe.fleet.probe import is_alive, is_ready, open_probe_session
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.registry.runtimes import RUNTIMES
from tests.fleet.fake_fleet import QUICK

pytestmark = pytest.mark.anyio
STAND_IN = Path(__file__).with_name("fake_engine.py")


@dataclass
class Engines:
    """Stand-ins for the commands of all engines, and a GGUF file."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("llama-server", "sglang", "ollama", "vllm", "transformers"):
            command = self.folder / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" {name} "$@"\n')
            command.chmod(0o755)
        (self.folder / "tiny.gguf").write_bytes(b"GGUF")

    def expert(self, runtime: str, **more: Any) -> ExpertSpec:
        model = {"llama.cpp": "tiny.gguf", "ollama": "tiny:1b"}.get(runtime, "org/tiny")
        return ExpertSpec.model_validate({"name": "tiny", "model": model, "runtime": runtime, **more})

    def plan(self, expert: ExpertSpec) -> ServerSpec:
        [spec], _ = local_servers(
            [expert],
            cache=self.folder,
            logs=self.folder / "logs",
            python=self.folder / "python",
            base_folder=self.folder,
        )
        return spec

    def problems(self, expert: ExpertSpec) -> list[tuple[str, str]]:
        return [(key, what) for _, key, what in find_problems([expert], base_folder=self.folder)]


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return Engines(tmp_path)


LEVELS = [(name, level) for name in ENGINES for level in sorted(RUNTIMES[name].sleep_levels) or [None]]


@pytest.mark.parametrize(("runtime", "level"), LEVELS)
async def test_a_server_is_ready_by_a_token_sleeps_wakes_and_ends(
    engines: Engines, runtime: str, level: int | None
) -> None:
    options = {"enable-sleep-mode": True} if runtime == "vllm" else {}
    spec = engines.plan(engines.expert(runtime, sleep_level=level, options=options))
    async with open_probe_session() as session:
        server = Server(spec, session=session, report=engines.lines.append, timeouts=QUICK)
        try:
            await server.start()
            assert await is_alive(spec, session=session, time_limit=5)
            if level is not None:
                client = spec.open_client(spec.root, session)
                await client.sleep(level=level)
                async with session.get(f"{spec.root}/in-memory") as response:
                    assert await response.json(content_type=None) == []
                assert await is_alive(spec, session=session, time_limit=5)
                await client.wake(level=level)
                assert await is_ready(spec, session=session)
        finally:
            await server.stop()
    assert not server.running
    assert len(engines.lines) == 1


@pytest.mark.parametrize("runtime", ["transformers", "llama.cpp"])
async def test_the_client_of_an_engine_that_cannot_sleep_refuses(engines: Engines, runtime: str) -> None:
    spec = engines.plan(engines.expert(runtime))
    async with open_probe_session() as session:
        client = spec.open_client(spec.root, session)
        for work in (client.sleep(level=1), client.wake(level=1)):
            with pytest.raises(FleetError, match="cannot"):
                await work


@pytest.mark.parametrize("runtime", ENGINES)
def test_reserved_options_are_rejected_with_the_remedy(engines: Engines, runtime: str) -> None:
    for flag in ENGINES[runtime].reserved_flags - {"lora-modules"}:
        [(key, what)] = engines.problems(engines.expert(runtime, options={flag: "x"}))
        assert (key, what) == ("options", f"the options may not set {flag}; CoE does")


async def test_a_model_that_ollama_does_not_have_fails_at_once(engines: Engines) -> None:
    spec = engines.plan(engines.expert("ollama", model="other:1b"))
    async with open_probe_session() as session:
        server = Server(spec, session=session, report=engines.lines.append, timeouts=QUICK)
        try:
            with pytest.raises(FleetError, match="answered the readiness request for model 'other:1b' with 404"):
                await server.start()
        finally:
            await server.stop()


def test_llama_server_gets_the_file_and_serves_it_offline_under_the_name_of_the_expert(engines: Engines) -> None:
    spec = engines.plan(engines.expert("llama.cpp", options={"ctx_size": 512, "threads": 3}, gpus=[1]))
    assert spec.argv == (
        *(str(engines.folder / "llama-server"), "--model", str(engines.folder / "tiny.gguf"), "--offline"),
        *("--alias", "tiny", "--host", "127.0.0.1", "--port", str(spec.port)),
        *("--metrics", "--no-ui", "--threads", "3", "--ctx-size", "512"),
    )
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "1"
    assert engines.plan(engines.expert("llama.cpp", model="org/tiny-GGUF:Q4_K_M")).argv[1:3] == (
        *("--hf-repo", "org/tiny-GGUF:Q4_K_M"),
    )


@pytest.mark.parametrize(
    ("runtime", "declared", "key", "message"),
    [
        ("llama.cpp", {"model": "./nowhere.gguf"}, "model", "there is no file /"),
        ("llama.cpp", {"model": "tiny"}, "model", "name a GGUF file, a folder with one, or a hub model"),
        ("sglang", {"gpus": [0], "options": {"tp": 2}}, "gpus", "over 2 devices and `gpus` names 1"),
        ("ollama", {"model": "large:120b-cloud"}, "model", "runs at Ollama's own service, not here"),
    ],
)
def test_declarations_that_cannot_run_are_rejected(
    engines: Engines, runtime: str, declared: Mapping[str, Any], key: str, message: str
) -> None:
    [(where, what)] = engines.problems(engines.expert(runtime, **declared))
    assert where == key
    assert message in what
