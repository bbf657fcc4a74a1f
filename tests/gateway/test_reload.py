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
from coe.artifacts.manifest import ASSIGNMENT
from coe.artifacts.store import ArtifactStore
from coe.errors import ConfigError
from coe.registry import Registry
from coe.settings import Settings
from gateway.main import open_services
from gateway.process import reload as reload_module
from gateway.process.reload import Reload, check_reloadable, file_states, watched_files
from tests.access.samples import key_of
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
            assert await served.metric("coe_degraded") == 1
            served.declare(policy={"max_attempts": 1})
            await wait_until_status(served, reload_error=False, config=first)
            (tmp_path / "experts.yaml").unlink()
            os.mkfifo(tmp_path / "experts.yaml")  # it is refused, and blocks no later reload
            await wait_until_status(served, reload_error=True)
            served.declare()
            served.process.send_signal(signal.SIGHUP)
            await wait_until_status(served, reload_error=False, config=first)
            served.promote("another")
            await wait_until_status(served, router="another")
            assert await requests.of_the_next(20) == {"another"}
        assert not requests.failed
        assert await served.metric("coe_degraded") == 0


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

    services: Any = SimpleNamespace(snapshot=SimpleNamespace(versions={}), reload_error=None, settings=settings)
    builder: Any = SimpleNamespace(close_replaced=AsyncMock())
    in_use: Any = SimpleNamespace(registry=registry_of())
    return Reload(services, in_use=in_use, builder=builder, read=read), builder.close_replaced


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


async def test_both_workers_reload_but_do_not_open_to_the_world_by_removing_the_keys(tmp_path: Path) -> None:
    keys, sent = [key_of("app").model_dump(mode="json")], {"x-api-key": "app", "connection": "close"}
    environ = {"COE_HOST": "0.0.0.0", "COE_WORKERS": "2"}
    async with serving(tmp_path, environ=environ, access={"keys": keys}) as served:
        experts = declared_for(served.upstream.url)["experts"]
        served.declare(experts=[*experts, {**experts[0], "name": "newcomer"}])
        async with asyncio.timeout(SOON):
            answers = 0
            while answers < 20:  # in a row, each on a connection of its own
                async with served.send_chat("newcomer", headers=sent) as response:
                    answers = answers + 1 if response.status == 200 else 0
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


def test_a_local_server_cannot_change_and_how_it_is_used_can() -> None:
    check_reloadable(local(), local(system_prompt="Be brief.", parameters={"temperature": 0}))
    for change in ({"model": "other"}, {"options": {"max-model-len": 1}}, {"runtime": "vllm"}):
        with pytest.raises(ConfigError, match="the server of expert 'small'"):
            check_reloadable(local(), local(**change))
    check_reloadable(local(), registry_of())
    check_reloadable(registry_of(cache={}), registry_of(cache={"ttl": 60, "when": "always"}))
