"""A running gateway loads changed declarations and promoted artifacts while it serves requests."""

import asyncio
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import orjson
import pytest

from coe.artifacts.active_state import ActiveState
from coe.artifacts.kinds import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import ConfigError
from coe.registry import Registry
from coe.settings import Settings
from gateway.main import open_services
from gateway.process import reload as reload_module
from gateway.process.reload import Reload, check_reloadable, file_states, watched_files
from tests.admin.samples import measured_registry, planned
from tests.fakes import registry_of
from tests.gateway import words_server
from tests.gateway.served import Served, declared_for, serving

pytestmark = pytest.mark.anyio

SOON = 60.0
"""Time limit of waiting for a reload, in seconds."""


async def wait_until_status(served: Served, **said: Any) -> None:
    """Wait until /health/ready reports these fields."""
    async with asyncio.timeout(SOON):
        while not said.items() <= (await served.ready()).items():
            await asyncio.sleep(0.02)


class load:
    """Requests without a pause by ten clients while the block runs.

    `routers` holds the router of each, in the order they were sent; None for one in progress.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._over = False
        self.failed: list[object] = []
        self.routers: list[str | None] = []

    async def __aenter__(self) -> "load":
        self._tasks = [asyncio.create_task(self._go(stream=bool(number % 2))) for number in range(10)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def of_the_next(self, number: int) -> set[str | None]:
        """Wait for the answers of the next `number` requests, and return their routers."""
        begin, end = len(self.routers), len(self.routers) + number
        async with asyncio.timeout(SOON):
            while len(self.routers) < end or None in self.routers[begin:end]:
                await asyncio.sleep(0.02)
        return set(self.routers[begin:end])

    async def _go(self, *, stream: bool) -> None:
        while not self._over:
            place = len(self.routers)
            self.routers.append(None)
            async with self._served.send_chat("good", stream=stream) as response:
                body = await response.read()
                whole = body.endswith(b"data: [DONE]\n\n") if stream else b'"choices"' in body
                if response.status != 200 or not whole:
                    self.failed.append((response.status, body))
                self.routers[place] = response.headers["x-coe-router"]


async def test_requests_go_on_while_the_declaration_turns_valid_and_invalid_and_the_router_moves(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served:
        first = (await served.ready())["config"]
        async with load(served) as requests:
            assert await requests.of_the_next(1) == {"words"}
            served.declare(policy={"max_attempts": 1, "cost_weight": 0.5})
            async with asyncio.timeout(SOON):
                while (second := (await served.ready())["config"]) == first:
                    await asyncio.sleep(0.02)
            served.declare("version: 1\nexperts: [")
            await wait_until_status(served, reload_error=True, config=second, http=200)
            assert await served.metric("coe_reload_failed") == 1
            served.declare(policy={"max_attempts": 1})
            await wait_until_status(served, reload_error=False, config=first)
            served.promote("another")
            await wait_until_status(served, router="another")
            assert await requests.of_the_next(20) == {"another"}
        assert not requests.failed
        assert await served.metric("coe_reload_failed") == 0


async def test_both_workers_reload_and_new_experts_can_be_called_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}) as served:
        experts = declared_for(served.upstream.url)["experts"]
        served.declare(experts=[*experts, {**experts[0], "name": "newcomer"}])
        async with asyncio.timeout(SOON):
            answers = 0
            while answers < 20:  # in a row, each on a connection of its own
                async with served.send_chat("newcomer", headers={"connection": "close"}) as response:
                    answers = answers + 1 if response.status == 200 else 0


async def test_sighup_reloads_at_once_even_if_no_file_changed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.declare("no yaml: [")
        await wait_until_status(served, reload_error=True)
        served.declare()
        served.process.send_signal(signal.SIGHUP)
        await wait_until_status(served, reload_error=False)


async def test_a_pipe_in_place_of_the_declaration_is_refused_and_blocks_no_later_reload(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        (tmp_path / "experts.yaml").unlink()
        os.mkfifo(tmp_path / "experts.yaml")
        await wait_until_status(served, reload_error=True)
        served.declare()
        await wait_until_status(served, reload_error=False)


async def test_a_file_that_is_repaired_in_place_ends_the_failure_although_nothing_else_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "RETRY_SECONDS", 0.1)
    registry = measured_registry()
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(registry.model_dump(mode="json", exclude_none=True)))
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    version, _ = planned(settings, registry)
    plan = ArtifactStore(settings.artifacts, ASSIGNMENT).folder(version) / "plan.json"
    content = plan.read_bytes()
    async with open_services(settings, read=words_server.read) as parts, asyncio.timeout(SOON):
        assert parts.reload is not None
        plan.write_text("damaged")
        parts.reload.request()
        while parts.reload_error is None:
            await asyncio.sleep(0.01)
        plan.write_bytes(content)
        while parts.reload_error is not None:
            await asyncio.sleep(0.01)


def reload_of(settings: Settings, texts: list[str]) -> tuple[Reload, Any]:
    """A Reload that adds each text it reads to `texts` and refuses it, and a mock whose calls count its rounds."""

    def read(*_: object) -> ActiveState:
        texts.append(settings.config.read_text())
        raise ConfigError("not read further")

    services: Any = SimpleNamespace(snapshot=SimpleNamespace(versions={}), reload_error=None)
    builder: Any = SimpleNamespace(close_retired=AsyncMock())
    in_use: Any = SimpleNamespace(registry=registry_of())
    return Reload(services, settings=settings, in_use=in_use, builder=builder, read=read), builder.close_retired


async def test_a_file_that_is_written_during_the_start_is_read_once_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    texts, settled = list[str](), Reload._settled_states

    async def finish(reload: Reload) -> Any:
        settings.config.write_text("version: 1  # complete")
        return await settled(reload)

    monkeypatch.setattr(Reload, "_settled_states", finish)
    settings.config.write_text("version: ")
    reload, rounds = reload_of(settings, texts)
    async with reload.watching(since=()), asyncio.timeout(SOON):
        while rounds.call_count < 3:  # twice after the start
            await asyncio.sleep(0.01)
    assert texts == ["version: 1  # complete"]


async def test_a_change_during_the_start_is_read(tmp_path: Path) -> None:
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    settings.config.write_text("version: 1")
    texts, since = list[str](), file_states(watched_files(settings))
    settings.config.write_text("version: 1  # changed")
    reload, _ = reload_of(settings, texts)
    async with reload.watching(since=since), asyncio.timeout(SOON):
        while not texts:
            await asyncio.sleep(0.01)
    assert texts == ["version: 1  # changed"]


async def test_permits_follow_the_declaration_and_who_waits_profits(tmp_path: Path) -> None:
    one = {"concurrent_requests": 1}
    async with serving(tmp_path, limits=one) as served, served.send_chat("stalls", stream=True) as held:
        await held.content.readuntil(b"\n\n")
        waiting = asyncio.ensure_future(served.send_chat("good").__aenter__())
        while not await served.metric("coe_queue_length"):
            await asyncio.sleep(0.02)
        served.declare(limits={"concurrent_requests": 2})
        response = await asyncio.wait_for(waiting, SOON)
        assert response.status == 200
        response.release()


async def test_opening_to_the_world_by_removing_the_keys_is_refused(tmp_path: Path) -> None:
    key = {"name": "app", "sha256": "0" * 64, "scopes": ["chat"]}
    async with serving(tmp_path, environ={"COE_HOST": "0.0.0.0"}, access={"keys": [key]}) as served:
        served.declare(access={})
        await wait_until_status(served, reload_error=True)
        async with served.send_chat("good") as response:
            assert response.status == 401


def local(**changes: Any) -> Registry:
    expert = {"name": "small", "model": "m", "runtime": "transformers", **changes}
    return registry_of(experts=[expert], assignment={"general": "small"})


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (registry_of(log={"url": "sqlite:///other.sqlite"}), r"^log\.url: "),
        (registry_of(log={"store_embeddings": True}), r"^log\.store_embeddings: "),
        (registry_of(access={"counters": "redis://h:1/0"}), r"^access\.counters: "),
        (registry_of(cache={"max_bytes": 2**21}), r"^cache\.store, cache\.max_bytes: "),
    ],
)
def test_what_needs_a_restart_is_refused_by_name(new: Registry, named: str) -> None:
    with pytest.raises(ConfigError, match=named + "a change of this needs a restart"):
        check_reloadable(registry_of(), new)


def test_devices_and_the_place_of_a_server_on_them_cannot_change_and_the_longest_wait_for_one_can() -> None:
    def shared(memory: float = 50.0, **changes: Any) -> Registry:
        small = {"name": "small", "model": "m", "runtime": "vllm", "memory_gb": 10, "device": "any"}
        devices = [{"name": f"gpu{gpu}", "memory_gb": memory, "gpus": [gpu]} for gpu in range(2)]
        residency = {"devices": devices, "wait_timeout": changes.pop("wait_timeout", 60)}
        return registry_of(experts=[{**small, **changes}], residency=residency, assignment={"general": "small"})

    check_reloadable(shared(), shared(wait_timeout=30))
    with pytest.raises(ConfigError, match=r"^residency\.devices: "):
        check_reloadable(shared(), shared(memory=60.0))
    for change in ({"device": "gpu0"}, {"memory_gb": 20}, {"device": "gpu0", "pinned": True}):
        with pytest.raises(ConfigError, match="the server of expert 'small'"):
            check_reloadable(shared(), shared(**change))


def test_how_the_cache_is_used_may_change() -> None:
    check_reloadable(registry_of(cache={}), registry_of(cache={"ttl": 60, "when": "always"}))


def test_a_local_server_cannot_change_and_how_it_is_used_can() -> None:
    check_reloadable(local(), local(system_prompt="Be brief.", parameters={"temperature": 0}))
    for change in ({"model": "other"}, {"options": {"max-model-len": 1}}, {"runtime": "vllm"}):
        with pytest.raises(ConfigError, match="the server of expert 'small'"):
            check_reloadable(local(), local(**change))
    check_reloadable(local(), registry_of())
