"""Two gateways with separate state folders and one Redis, behind a real nginx; one gateway is killed."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.core import RequestOptions
from coe.planning import Assignment
from coe.registry import load
from coe.routing.conversation import read_conversation
from gateway.dialects.chat import parse
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

LIMIT = 40
CLIENTS = 12


@dataclass
class Replicas:
    """Two gateways, nginx before them at `url`, and Redis between them."""

    url: str
    redis: str
    gateways: list[Served]
    client: aiohttp.ClientSession

    async def send_chat(
        self, text: str, *earlier: str, at: str | None = None, **options: Any
    ) -> tuple[int, dict[str, str]]:
        """Return status and headers of the answer to `text` after earlier turns, through nginx or `at` one gateway."""
        headers = {"x-api-key": options.pop("key", "bob"), **options.pop("headers", {})}
        turns = [*earlier, text]
        messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
        body = {"model": "auto", "messages": messages, **options}
        async with self.client.post(f"{at or self.url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response.status, dict(response.headers)

    async def know(self, expert: str, opening: str, session: str | None = None) -> None:
        """Wait until the gateways share that this expert answered the conversation with this opening."""
        chat = parse(orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": opening}]}))
        name = f"coe:{{with}}:1:{read_conversation(chat, RequestOptions(session, tenant='bob')).answer[-1].hex()}"
        async with asyncio.timeout(60), Redis.from_url(self.redis, decode_responses=True) as redis:
            while await redis.get(name) != expert:
                await asyncio.sleep(0.01)


def declared(upstream: str, redis: str) -> dict[str, Any]:
    keys = (key_of("alice", limits={"requests_per_minute": LIMIT}), key_of("bob", scopes=("chat", "admin")))
    names = ("coder", "painter", "generalist")
    return {
        "experts": [{"name": name, "model": "good", "runtime": "external", "base_url": upstream} for name in names],
        "assignment": dict(zip(("code", "art", "general"), names, strict=True)),
        "policy": {"confidence_threshold": 0.5},
        "access": {"keys": [key.model_dump(mode="json") for key in keys], "counters": redis},
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
        yield Replicas(url, redis.url, gateways, client)


async def test_replicas_share_conversations_and_limits_and_one_may_die_under_load(tmp_path: Path) -> None:
    async with replicas(tmp_path) as service:
        await keeps_its_expert(service)
        await limits_hold_together(service)
        await take_over_what_another_machine_promotes(service, tmp_path / "job")
        await dies_under_load(service)


async def keeps_its_expert(service: Replicas) -> None:
    """A look that takes too long, as on a busy machine, is given up; so the gateways may try again with another one."""
    for number in range(20):
        if await is_kept(service, f"s{number}", f"hello {number}"):
            return
    pytest.fail("no conversation stayed with its expert from one gateway to the other")


async def is_kept(service: Replicas, session: str, opening: str) -> bool:
    one, two = (gateway.url for gateway in service.gateways)
    named = {"x-session-id": session}
    _, headers = await service.send_chat("some code", at=one, headers=named)
    assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("coder", "routed")
    await service.know("coder", "some code", session)
    _, first = await service.send_chat("and then?", at=two, headers=named)
    _, headers = await service.send_chat("rather art", at=two, headers=named)
    assert headers["x-coe-expert"] == "painter"
    await service.know("painter", "rather art", session)
    _, second = await service.send_chat("and then?", at=one, headers=named)  # what this one remembers itself is older
    _, headers = await service.send_chat(opening, at=one, model="painter")
    assert headers["x-coe-expert"] == "painter"
    await service.know("painter", opening)
    _, last = await service.send_chat("go on", opening, "hi", at=two)
    found = [(headers["x-coe-expert"], headers["x-coe-reason"]) for headers in (first, second, last)]
    return found == [("coder", "sticky"), ("painter", "sticky"), ("painter", "sticky")]


async def limits_hold_together(service: Replicas) -> None:
    start = time.monotonic()
    answers = await asyncio.gather(*(service.send_chat("hi", key="alice") for _ in range(3 * LIMIT)))
    due = LIMIT * (1 + (time.monotonic() - start) / 60)  # the limit refills meanwhile
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {200, 429}
    assert LIMIT <= statuses[200] <= 2 * due + 10, statuses  # each gateway may admit a limit in a burst


async def take_over_what_another_machine_promotes(service: Replicas, folder: Path) -> None:
    config = folder / "experts.yaml"
    config.write_bytes(orjson.dumps(service.gateways[0].declared | {"version": 1}))
    registry = load(config, environ={})
    plan = Assignment.declared(
        registry.category_names, registry.expert_names, {"code": "painter", "art": "coder"}, general="generalist"
    )
    store = ArtifactStore(folder / ".coe" / "artifacts", "assignment")
    with store.draft() as draft:
        plan_of(plan).save(draft)
        store.publish(draft, categories=plan.categories, data=registry.digest, metrics={})
    for verb, expert in (("promote", "painter"), ("rollback", "coder")):
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
