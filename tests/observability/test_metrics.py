"""The metrics of requests on /metrics."""

import asyncio
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from coe.errors import ExpertUnavailable
from coe.experts.replicas import State
from gateway.observability.state_metrics import BREAKER_STATES
from tests.fakes import Gateway, gateway_of, registry_of
from tests.observability.pages import samples, value

pytestmark = pytest.mark.anyio


async def page(gateway: Gateway) -> bytes:
    response = await gateway.post("/metrics", method="GET")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return response.body


async def test_requests_are_counted_by_what_was_decided_and_how_they_ended() -> None:
    async with gateway_of(painter=ExpertUnavailable("gone", expert="painter")) as gateway:
        await gateway.chat("code")
        await gateway.chat("code", model="generalist")
        await gateway.chat("art", model="painter")
        await gateway.chat("code", model="nobody")
        text = await page(gateway)

    def requests(**labels: str) -> float:
        return value(text, "coe_requests_total", api="chat", **labels)

    assert requests(category="code", expert="coder", reason="routed", outcome="ok", status="200") == 1
    assert requests(category="code", expert="generalist", reason="pinned", outcome="ok", status="200") == 1
    assert requests(category="art", expert="painter", reason="pinned", outcome="expert_unavailable", status="503") == 1
    assert requests(category="", expert="", reason="", outcome="model_not_found", status="404") == 1
    assert value(text, "coe_request_seconds_count") == 4
    assert value(text, "coe_routing_seconds_count") == 3
    assert value(text, "coe_first_byte_seconds_count", expert="coder") == 1
    assert value(text, "coe_upstream_seconds_count", expert="coder") == 1


async def test_what_runs_now_is_shown_while_it_runs() -> None:
    async with gateway_of(coder=asyncio.Event()) as gateway:
        asked = asyncio.ensure_future(gateway.chat("code"))
        while not gateway.experts["coder"].calls:
            await asyncio.sleep(0)
        busy = await page(gateway)
        gateway.leave.set()
        await asked
        idle = await page(gateway)
    assert (value(busy, "coe_requests_in_flight"), value(idle, "coe_requests_in_flight")) == (1, 0)
    assert value(idle, "coe_queue_length") == 0
    assert value(busy, "coe_tasks") > value(idle, "coe_tasks")


async def test_what_is_in_use_and_what_fails_is_named() -> None:
    registry = registry_of()
    async with gateway_of(registry, versions={"router": "words"}) as gateway:
        text = await page(gateway)
        assert value(text, "coe_artifact_info", kind="router", version="words") == 1
        assert value(text, "coe_artifact_info", kind="config", version=registry.digest) == 1
        assert value(text, "coe_degraded", part="reload") == 0
        gateway.services.reload_error = "invalid"
        assert value(await page(gateway), "coe_degraded", part="reload") == 1


async def test_nothing_that_a_client_writes_becomes_a_label() -> None:
    canary = "canary-text"
    async with gateway_of() as gateway:
        await gateway.chat(canary)
        await gateway.chat("code", model=canary)
        await gateway.post("/v1/chat/completions", b"{", headers={"x-session-id": canary, "x-request-id": canary})
        await gateway.post(f"/v1/{canary}")
        text = await page(gateway)
    assert canary.encode() not in text
    assert sum(value for (name, _), value in samples(text).items() if name == "coe_requests_total") == 3


def test_every_state_of_a_breaker_has_a_number() -> None:
    assert set(BREAKER_STATES) == set(get_args(State))


class _Replica:
    def __init__(self, address: str, state: str, in_flight: int) -> None:
        self.address, self.breaker, self.in_flight = address, SimpleNamespace(state=state), in_flight


async def test_replicas_show_their_breakers_and_their_work() -> None:
    async with gateway_of() as gateway:
        coder: Any = gateway.experts["coder"]
        coder.replicas = (_Replica("a:1", "closed", 2), _Replica("b:1", "open", 1))
        text = await page(gateway)
    assert value(text, "coe_breaker_state", expert="coder", replica="a:1") == 0
    assert value(text, "coe_breaker_state", expert="coder", replica="b:1") == 3
    assert value(text, "coe_expert_in_flight", expert="coder") == 3
