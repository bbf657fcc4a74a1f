"""A key with a limit in dollars pays for everything that a provider bills, however its requests end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from coe.experts import build_experts
from coe.experts.http.client import Client
from tests.access.samples import remaining_of
from tests.experts.faulty_server import LAST, FaultyServer
from tests.fakes import gateway_of
from tests.gateway.raw_http import served
from tests.hostile.test_random_ends import CONNECTIONS, declared, ending, held
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

REPORTED = 6
"""Tokens that the server reports at the end of an answer."""
LIMIT = 1000.0
"""Dollars that no run of the test uses."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


class BillingServer(FaultyServer):
    """Bills each request that it did not refuse: the counts that it reported, or else the whole input and `max_tokens`.

    `tokens` is the sum. One token costs a millionth of a dollar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0.0
        self.unreported = 0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        kind = body["model"]
        if kind.startswith("status:4"):
            return await super()._answer(request)
        longest = body.get("max_tokens") or body.get("max_completion_tokens") or 512
        bill = sum(len(message["content"]) for message in body["messages"]) / 4 + longest
        try:
            response = await super()._answer(request)
            request["reported"] = "reported" in request or kind == "good"
            return response
        finally:
            self.tokens += REPORTED if request.get("reported") else bill
            self.unreported += not request.get("reported")

    def _note(self, request: web.Request, chunk: bytes) -> None:
        if LAST in chunk:
            request["reported"] = True


@pytest.fixture
async def upstream(anyio_backend: object) -> AsyncIterator[BillingServer]:
    server = BillingServer()
    runner = await server.start()
    yield server
    await runner.cleanup()


async def test_a_key_is_charged_at_least_what_is_billed(upstream: BillingServer) -> None:
    rng = random.Random(0)
    registry = declared(upstream.url, limits=[{"dollars_per_month": LIMIT}] * 3, apis=["chat"])
    async with Client() as session:
        experts = build_experts(registry, {}, session=session)
        async with (
            gateway_of(registry, real_experts=experts) as gateway,
            served(gateway.app) as (server, port),
        ):
            await asyncio.gather(*(ending(port, random.Random(rng.random())) for _ in range(CONNECTIONS)))
            await wait_until(lambda: not held(gateway, server, session))
            accounts = gateway.services.snapshot.access._accounts.values()
            charged = sum(LIMIT - remaining for account in accounts for remaining in remaining_of(account))
            marked = sum(record.unpriced for record in gateway.records)
    assert charged * 1e6 >= upstream.tokens - 1e-3
    assert upstream.unreported > 10  # or the run has tested nothing
    assert marked >= upstream.unreported
