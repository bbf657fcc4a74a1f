"""A request that its first choice did not answer: who that was and why, in headers, record, metrics and commands."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.core import Health
from coe.errors import ExpertBusy, ExpertError, ExpertRejected, ExpertUnavailable, InvalidRequest
from coe.records.record import RECORD
from gateway.observability.metrics import Metrics
from gateway.observability.metrics import exposition as written
from gateway.observability.state_metrics import add_traffic_metrics
from tests.experts.fault_servers import answering, closed_port, refusing, servers
from tests.fakes import NOWHERE, Gateway, Response, gateway_of
from tests.gateway.gateway_over import gateway_over
from tests.observability.pages import value

pytestmark = pytest.mark.anyio


def unavailable(cause: Any, expert: str = "coder") -> ExpertUnavailable:
    error = ExpertUnavailable("no", expert=expert)
    error.cause = cause
    return error


def routing_headers(response: Response) -> tuple[str | None, ...]:
    names = ("x-coe-expert", "x-coe-reason", "x-coe-fallback-from", "x-coe-cause", "x-coe-attempts")
    return tuple(response.headers.get(name) for name in names)


async def metrics(gateway: Gateway) -> bytes:
    return (await gateway.post("/metrics", method="GET")).body


async def test_a_fallback_names_the_first_choice_and_the_cause() -> None:
    async with gateway_of(coder=unavailable("unauthorized")) as gateway:
        response = await gateway.chat("code")
        page = await metrics(gateway)
    assert routing_headers(response) == ("generalist", "fallback", "coder", "unauthorized", "2")
    (logged,) = gateway.records
    assert (logged.fallback_from, logged.cause) == ("coder", "unauthorized")
    assert RECORD.decode(RECORD.encode(logged)) == logged
    assert value(page, "coe_fallbacks_total", expert="coder", cause="unauthorized") == 1


async def test_a_request_refused_by_an_open_breaker_counts_as_a_fallback() -> None:
    async with gateway_of() as gateway:
        gateway.experts["coder"].health = Health(up=False, ready_replicas=0, cause="connection_refused")
        response = await gateway.chat("code")
        route = await gateway.post(
            "/v1/route", orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        )
        page = await metrics(gateway)
    assert routing_headers(response) == ("generalist", "fallback", "coder", "connection_refused", "1")
    assert gateway.experts["coder"].calls == []
    assert value(page, "coe_fallbacks_total", expert="coder", cause="connection_refused") == 1
    assert (route.json["fallback_from"], route.json["cause"]) == ("coder", "connection_refused")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (unavailable("model_not_found"), "model_not_found"),
        (ExpertBusy("full", expert="coder"), "rate_limited"),
        (ExpertRejected("bad", expert="coder", status=422), "rejected"),
    ],
)
async def test_a_pinned_request_that_fails_has_a_cause_and_no_first_choice(error: ExpertError, cause: str) -> None:
    async with gateway_of(coder=error) as gateway:
        response = await gateway.chat("code", model="coder")
    assert routing_headers(response)[:4] == ("coder", "pinned", None, cause)
    assert (gateway.records[0].fallback_from, gateway.records[0].cause) == ("", cause)


async def test_an_answer_that_breaks_off_has_a_cause_in_its_record() -> None:
    async with gateway_of(coder=(b'data: {"choices":[]}\n\n', unavailable("connection_lost"))) as gateway:
        await gateway.chat("code", stream=True)
    assert (gateway.records[0].outcome, gateway.records[0].cause) == ("expert_unavailable", "connection_lost")


async def test_an_expert_without_words_for_the_request_is_a_cause() -> None:
    async with gateway_of(coder=InvalidRequest("no words", code="unsupported_api")) as gateway:
        response = await gateway.chat("code")
    assert routing_headers(response)[1:4] == ("fallback", "coder", "unsupported")


async def test_real_servers_that_fail_are_named_with_the_cause_until_the_breaker_keeps_requests_away() -> None:
    async with (
        servers((refusing(401), answering)) as (wrong, good),
        gateway_over({"coder": f"{wrong}/v1", "painter": f"{closed_port()}/v1", "generalist": f"{good}/v1"}) as gateway,
    ):
        attempts = []
        for _ in range(8):
            response = await gateway.chat("code", max_tokens=1)
            assert routing_headers(response)[:4] == ("generalist", "fallback", "coder", "unauthorized")
            attempts.append(response.headers["x-coe-attempts"])
        experts = (await gateway.post("/v1/experts", method="GET", headers={"host": "127.0.0.1"})).json["data"]
        page = await metrics(gateway)
        alarms = Metrics()
        add_traffic_metrics(alarms, NOWHERE.artifacts / "none", gateway.services)
        shown = written(alarms.own_families())
    assert attempts[0] > attempts[-1] == "1"  # kept away from both dead experts, and a fallback all the same
    assert value(page, "coe_fallbacks_total", expert="coder", cause="unauthorized") == 8
    assert value(page, "coe_expert_failing", expert="coder", cause="unauthorized") == 1
    assert value(shown, "coe_alarm", kind="failing", expert="coder") == 1
    assert value(shown, "coe_alarm", kind="failing", expert="generalist") == 0
    assert next(one for one in experts if one["id"] == "coder")["failing"][0]["cause"] == "unauthorized"
