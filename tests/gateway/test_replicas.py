"""Two gateways with separate state folders and one Redis, behind a real nginx; one gateway is killed."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.planning.assignment import Assignment
from coe.registry import load
from tests.access.samples import key_of
from tests.experts.faulty_server import FaultyServer
from tests.fakes import plan_of
from tests.gateway import nginx
from tests.gateway.served import Served, serving
from tests.records import redis_server
from tests.records.redis_server import RedisServer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not redis_server.installed(), reason=redis_server.MISSING),
    pytest.mark.skipif(nginx.NGINX is None, reason=nginx.MISSING),
]

CLIENTS = 12


@dataclass
class Replicas:
    """Two gateways, nginx before them at `url`, and Redis between them."""

    url: str
    gateways: list[Served]
    client: aiohttp.ClientSession

    async def send_chat(self, text: str, *, at: str | None = None, **options: Any) -> tuple[int, dict[str, str]]:
        """Return status and headers of the answer to `text`, through nginx or `at` one gateway."""
        headers = {"x-api-key": "bob", **options.pop("headers", {})}
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **options}
        async with self.client.post(f"{at or self.url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response.status, dict(response.headers)


def declared(upstream: str, redis: str) -> dict[str, Any]:
    key = key_of("bob", scopes=("chat", "admin")).model_dump(mode="json")
    names = ("coder", "painter", "generalist")
    return {
        "experts": [{"name": name, "model": "good", "runtime": "external", "base_url": upstream} for name in names],
        "assignment": {"art": "painter", "general": "generalist"},  # a plan may decide `code`
        "policy": {"confidence_threshold": 0.5},
        "access": {"keys": [key], "counters": redis},
        "log": {"url": redis},
        "artifacts": redis,
    }


@asynccontextmanager
async def replicas(folder: Path) -> AsyncIterator[Replicas]:
    redis, upstream = RedisServer(folder), FaultyServer()
    redis.start()
    async with AsyncExitStack() as stack:
        stack.callback(redis.kill)
        runner = await upstream.start()
        stack.push_async_callback(runner.cleanup)
        for name in ("one", "two", "nginx", "job"):
            (folder / name).mkdir()
        both = (serving(folder / name, **declared(upstream.url, redis.url)) for name in ("one", "two"))
        gateways = list(await asyncio.gather(*map(stack.enter_async_context, both)))
        url = await stack.enter_async_context(nginx.balancing(folder / "nginx", [one.port for one in gateways]))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Replicas(url, gateways, client)


async def test_replicas_share_conversations_and_promotions_and_one_may_die_under_load(tmp_path: Path) -> None:
    async with replicas(tmp_path) as service:
        await keeps_its_expert(service)
        await take_over_what_another_machine_promotes(service, tmp_path / "job")
        await dies_under_load(service)


async def keeps_its_expert(service: Replicas) -> None:
    """The gateways share the expert a moment after the answer, and give up a look that takes too long."""
    one, two = (gateway.url for gateway in service.gateways)
    async with asyncio.timeout(60):
        for number in itertools.count():
            named = {"x-session-id": f"s{number}"}
            _, headers = await service.send_chat("some art", at=one, headers=named)
            assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("painter", "routed")
            await asyncio.sleep(0.05)
            _, headers = await service.send_chat("and then?", at=two, headers=named)
            if (headers["x-coe-expert"], headers["x-coe-reason"]) == ("painter", "sticky"):
                return


async def take_over_what_another_machine_promotes(service: Replicas, folder: Path) -> None:
    config = folder / "experts.yaml"
    config.write_bytes(orjson.dumps(service.gateways[0].declared | {"version": 1}))
    registry = load(config, environ={})
    plan = Assignment.declared(
        registry.category_names, registry.expert_names, {"code": "coder", "art": "painter"}, general="generalist"
    )
    store = ArtifactStore(folder / ".coe" / "artifacts", "assignment")
    with store.draft() as draft:
        plan_of(plan).save(draft)
        store.publish(draft, categories=plan.categories, data=registry.digest, metrics={})
    for verb, expert in (("promote", "coder"), ("rollback", "generalist")):
        done = await asyncio.to_thread(CliRunner().invoke, app, [verb, "assignment", "--config", str(config)])
        assert done.exit_code == 0, done.output
        async with asyncio.timeout(60):
            for gateway in service.gateways:
                while (await service.send_chat("some code", at=gateway.url))[1]["x-coe-expert"] != expert:
                    await asyncio.sleep(0.05)


async def dies_under_load(service: Replicas) -> None:
    """Only requests that the dead gateway had received fail: nginx does not send them to the other one."""
    statuses, torn = Counter[int](), 0
    more = True

    async def load(number: int) -> None:
        nonlocal torn
        while more:
            try:
                status, _ = await service.send_chat("some code", stream=number % 3 == 0)
                statuses[status] += 1
            except aiohttp.ClientPayloadError:
                torn += 1

    clients = [asyncio.create_task(load(number)) for number in range(CLIENTS)]
    await answered(statuses, 100)
    victim, survivor = service.gateways
    assert await victim.metric("coe_requests_total", key="bob") > 10
    await victim.kill()
    await answered(statuses, statuses.total() + 300)
    more = False
    await asyncio.gather(*clients)
    assert set(statuses) <= {200, 502}, statuses
    assert statuses[502] + torn <= CLIENTS
    assert await survivor.metric("coe_requests_total", key="bob") > 200


async def answered(statuses: Counter[int], count: int) -> None:
    async with asyncio.timeout(60):
        while statuses.total() < count:
            await asyncio.sleep(0.01)
