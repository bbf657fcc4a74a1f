"""Requests end in every way at random moments, over real sockets; afterwards the gateway holds nothing of them."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import orjson
import pytest

from coe.artifacts.api_keys import digest_of
from coe.experts import ReplicatedExpert, build_experts
from coe.experts.http.client import Client
from coe.registry import Registry
from tests.experts.fault_servers import closed_port
from tests.experts.faulty_server import FaultyServer
from tests.fakes import Gateway, gateway_of, registry_of
from tests.gateway.raw_http import RunningServer, served
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

CONNECTIONS, REQUESTS = 16, 25
"""Clients at a time, and the requests of each."""
FAULTS = (
    "good",
    "slow-start",
    "silent",
    "torn",
    "status:500",
    "status:429",
    "text:noise",
    "truncated",
    "drips",
    "half",
    "long-event",
)
NAMES = tuple(fault.replace(":", "-") for fault in FAULTS)
PATHS = ("/v1/chat/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/route", "/v1/embeddings")
MODELS = ("auto", "auto", "auto", *NAMES, "panel", "steps", "nobody")
LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"requests_per_minute": 100_000, "concurrent_requests": 3},
    {"tokens_per_minute": 100_000, "dollars_per_day": 10.0},
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


def declared(url: str, *, limits: Sequence[dict[str, Any]] = LIMITS, apis: Sequence[str] | None = None) -> Registry:
    """Experts of one request at a time, each with a fault and a second server that refuses connections; and a key for
    each of the `limits`."""
    experts: list[dict[str, Any]] = [
        {"name": name, "model": fault, "runtime": "external", "base_urls": [url, closed_port()]}
        for name, fault in zip(NAMES, FAULTS, strict=True)
    ]
    for expert in experts:
        expert |= {"concurrent_requests": 1, "prices": {"input": 1.0, "output": 1.0}} | ({"apis": apis} if apis else {})
    return registry_of(
        experts=experts,
        assignment={"code": "slow-start", "art": "drips", "general": "good"},
        recipes=[{"name": "panel", "vote": ["good", "silent"]}, {"name": "steps", "cascade": ["torn", "good"]}],
        policy={
            "first_token_timeout": 0.3,
            "response_timeout": 0.3,
            "stream_idle_timeout": 0.2,
            "timeout": 1.0,
            "keep_alive_interval": 0.05,
            "max_quality_loss": 1.0,
        },
        limits={"concurrent_requests": 6, "queued_requests": 4, "queue_timeout": 0.1},
        cache={},
        access={
            "keys": [
                {"name": f"k{number}", "sha256": digest_of(f"k{number}"), "limits": limited}
                for number, limited in enumerate(limits)
            ]
        },
    )


def request(rng: random.Random) -> bytes:
    path, text = rng.choice(PATHS), rng.choice(("code", "art", "hi", "x" * 70_000))
    body: dict[str, Any] = {"model": rng.choice(MODELS), "stream": rng.random() < 0.6, "max_tokens": 10}
    body |= {"input": text} if path in ("/v1/responses", "/v1/embeddings") else {"temperature": rng.choice((0, 1))}
    body["messages"] = [{"role": "user", "content": text}]
    data = orjson.dumps(body)
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"x-api-key: k{rng.randrange(4)}", f"content-length: {len(data)}"]
    if rng.random() < 0.2:
        lines.append(f"x-coe-timeout: {rng.choice((0.001, 0.01, 0.1))}")
    return "\r\n".join((*lines, "", "")).encode() + data


async def ending(port: int, rng: random.Random) -> None:
    """Send requests over a few connections. Leave one in five in the middle of the request, two while they wait."""
    for _ in range(REQUESTS):
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                data, how = request(rng), rng.random()
                cut = rng.randrange(1, len(data))
                writer.write(data[:cut])
                await asyncio.sleep(rng.choice((0, 0, 0.001)))
                if how > 0.2:
                    writer.write(data[cut:])
                    async with asyncio.timeout(rng.choice((0, 0.002, 0.01, 0.06)) if how < 0.6 else 60):
                        await reader.readuntil(b"\r\n\r\n")
                        await reader.read(rng.choice((1, 10, 1_000)))
            except asyncio.IncompleteReadError:
                pass
            finally:
                if rng.random() < 0.5:  # a reset in place of an orderly end
                    with suppress(OSError):
                        client = writer.get_extra_info("socket")
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.close()


def held(gateway: Gateway, server: RunningServer, session: Client) -> dict[str, Any]:
    """Return the resources that requests still hold, by name; empty if none."""
    state = gateway.services
    admission, experts = state.admission, state.snapshot.composition.experts.values()
    found: dict[str, Any] = {
        "admission": [admission.in_use, admission.queued, admission.arriving, admission.body_memory],
        "answers": state.answers.held,
        "active": [*admission.active, *admission.watch._due],
        "server": [*server.server_state.tasks, *server.connections],
        "open": [one for one in session._open if one._idle_in is None],
    }
    for one in experts:
        assert isinstance(one, ReplicatedExpert)
        found[one.name] = [replica.in_flight for replica in one.replicas]
    for name, account in state.snapshot.access._accounts.items():
        state = account.state()
        found[name] = [counter.limit - left for counter, left, _ in state if counter.name == "concurrent_requests"]
    return {name: value for name, value in found.items() if (any(value) if isinstance(value, list) else value)}


@pytest.fixture
async def upstream(anyio_backend: object) -> AsyncIterator[FaultyServer]:
    server = FaultyServer()
    runner = await server.start()
    yield server
    await runner.cleanup()


async def test_requests_that_end_at_random_leave_nothing_behind(upstream: FaultyServer) -> None:
    rng, registry = random.Random(0), declared(upstream.url)
    async with Client() as session:
        experts = build_experts(registry, {}, session=session)
        async with (
            gateway_of(registry, real_experts=experts) as gateway,
            served(gateway.app) as (server, port),
        ):
            clients = (ending(port, random.Random(rng.random())) for _ in range(CONNECTIONS))
            await asyncio.gather(*clients)
            await wait_until(lambda: not held(gateway, server, session))
            outcomes = {record.outcome for record in gateway.records}
    assert outcomes >= {"ok", "aborted", "deadline_exceeded"}
