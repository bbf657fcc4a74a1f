"""Requests of one tenant that cause errors must not make the expert unavailable to other tenants."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import ExpertTimeout, ExpertUnavailable, ExpertUnreachable
from coe.experts.outcomes import (
    CALLER_MEMORY,
    COOL_DOWN,
    MAX_CONSECUTIVE_FAILURES,
    MAX_COOL_DOWN,
    MAX_WINDOW_FAILURES,
    WINDOW_SIZE,
    Breaker,
)
from coe.runtime.api_keys import digest_of
from tests.experts.fault_servers import answering, closed_port, refusing, servers
from tests.experts.test_replicas import CALL, error, made, whole
from tests.fakes import Gateway, Response
from tests.gateway.gateway_over import gateway_over
from tests.waiting import ManualClock

KEYS = [{"name": name, "tenant": name, "sha256": digest_of(name)} for name in ("mallory", "alice", "bob")]


def breaker_of() -> tuple[Breaker, ManualClock]:
    clock = ManualClock()
    return Breaker(clock=clock), clock


def fail(breaker: Breaker, caller: str, times: int = 1, *, caller_independent: bool = False) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin(caller), caller=caller, caller_independent=caller_independent)


def answer(breaker: Breaker, caller: str) -> None:
    breaker.succeeded(breaker.begin(caller))


# ------------------------------------------------------------------------------------------- the breaker


def test_one_callers_failures_open_no_breaker_that_others_use() -> None:
    breaker, clock = breaker_of()
    answer(breaker, "alice")
    for _ in range(20):
        fail(breaker, "mallory", 2 * WINDOW_SIZE)
        clock.now += 1
        assert breaker.ready(clock.now)
        answer(breaker, "alice")
    assert breaker.state == "closed"


def test_now_and_then_a_failure_of_another_caller_changes_nothing() -> None:
    breaker, _ = breaker_of()
    for _ in range(20):
        fail(breaker, "alice")
        answer(breaker, "alice")
        fail(breaker, "mallory", WINDOW_SIZE)
    assert breaker.state == "closed"


def test_failures_of_several_callers_open_it() -> None:
    breaker, _ = breaker_of()
    for caller in ("alice", "bob", "alice", "bob", "alice")[:MAX_CONSECUTIVE_FAILURES]:
        assert breaker.state == "closed"
        fail(breaker, caller)
    assert breaker.state == "open"


def test_a_caller_that_is_alone_opens_it_as_ever() -> None:
    breaker, clock = breaker_of()
    answer(breaker, "alice")
    clock.now += CALLER_MEMORY
    fail(breaker, "bob", MAX_CONSECUTIVE_FAILURES)
    assert breaker.state == "open"


def test_half_of_one_lonely_callers_requests_failing_opens_it_as_ever() -> None:
    breaker, _ = breaker_of()
    for _ in range(MAX_WINDOW_FAILURES):
        assert breaker.state == "closed"
        answer(breaker, "alice")
        fail(breaker, "alice")
    assert breaker.state == "open"


def test_a_failure_that_concerns_everyone_counts_whoever_meets_it() -> None:
    breaker, _ = breaker_of()
    answer(breaker, "alice")
    fail(breaker, "bob", MAX_CONSECUTIVE_FAILURES, caller_independent=True)
    assert breaker.state == "open"
    assert breaker.caller_independent


def test_one_callers_failed_trial_lets_another_try_at_once() -> None:
    breaker, clock = breaker_of()
    for caller in ("alice", "mallory") * MAX_CONSECUTIVE_FAILURES:
        if breaker.ready(clock.now):
            fail(breaker, caller)
    clock.now += COOL_DOWN
    fail(breaker, "mallory")
    assert not breaker.ready(clock.now, "mallory")
    assert breaker.ready(clock.now, "alice")
    answer(breaker, "alice")
    assert breaker.state == "closed"


def test_trials_that_two_callers_fail_double_the_cool_down() -> None:
    breaker, clock = breaker_of()
    for caller in ("alice", "bob") * MAX_CONSECUTIVE_FAILURES:
        if breaker.ready(clock.now):
            fail(breaker, caller)
    clock.now += COOL_DOWN
    fail(breaker, "alice")
    fail(breaker, "bob")
    assert breaker.wait(clock.now) == 2 * COOL_DOWN


def test_mallory_alone_cannot_keep_an_open_breaker_open() -> None:
    breaker, clock = breaker_of()
    for caller in ("alice", "mallory") * MAX_CONSECUTIVE_FAILURES:
        if breaker.ready(clock.now):
            fail(breaker, caller)
    for _ in range(int(MAX_COOL_DOWN)):
        clock.now += 1
        if breaker.ready(clock.now, "mallory"):
            fail(breaker, "mallory")
    assert breaker.ready(clock.now, "alice")


@given(
    st.lists(
        st.tuples(st.sampled_from(("a", "b", "c")), st.sampled_from(("fail", "answer", "later")), st.booleans()),
        max_size=200,
    )
)
def test_its_memory_is_bounded_and_time_always_leads_back(steps: list[tuple[str, str, bool]]) -> None:
    breaker, clock = breaker_of()
    for caller, what, caller_independent in steps:
        if what == "later":
            clock.now += 7
        elif breaker.ready(clock.now, caller):
            if what == "fail":
                fail(breaker, caller, caller_independent=caller_independent)
            else:
                answer(breaker, caller)
        assert len(breaker._window) <= WINDOW_SIZE
    clock.now += MAX_COOL_DOWN
    for caller in ("a", "b", "c"):
        assert breaker.ready(clock.now, caller)
    answer(breaker, "b")
    assert breaker.state == "closed"


def test_one_callers_429_rests_the_server_for_that_caller_until_another_gets_one() -> None:
    breaker, clock = breaker_of()
    answer(breaker, "alice")
    breaker.begin("mallory")
    breaker.throttle(30, caller="mallory")
    assert not breaker.ready(clock.now, "mallory")
    assert breaker.wait(clock.now, "mallory") == 30
    assert breaker.ready(clock.now, "alice")
    answer(breaker, "alice")
    assert not breaker.ready(clock.now, "mallory")
    breaker.begin("alice")
    breaker.throttle(20, caller="alice")
    assert not breaker.ready(clock.now, "bob")
    assert breaker.state == "rate_limited"
    clock.now += 30
    for caller in ("mallory", "alice", "bob"):
        assert breaker.ready(clock.now, caller)


# ------------------------------------------------------------------------------------------- replicas


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [ExpertUnavailable, ExpertTimeout])
async def test_at_most_half_of_the_replicas_are_ejected_for_what_a_request_can_provoke(kind: Any) -> None:
    expert, servers_, _ = made(*[error(kind) for _ in range(4)])
    for _ in range(20 * MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(kind):
            await whole(expert)
    assert expert.health.up
    assert expert.health.ready_replicas == 4  # more than half would be ejected: all are asked
    for server in servers_:
        before = len(server.calls)
        for _ in range(4):
            with pytest.raises(kind):
                await whole(expert)
        assert len(server.calls) > before


@pytest.mark.anyio
async def test_half_of_the_replicas_may_be_ejected() -> None:
    expert, (first, second, *_), _ = made(*[(b"one",)] * 4)
    for replica in expert.replicas[:2]:
        fail(replica.breaker, "", MAX_CONSECUTIVE_FAILURES)
    assert expert.health.ready_replicas == 2
    for _ in range(10):
        assert await whole(expert) == [b"one"]
    assert first.calls == second.calls == []


@pytest.mark.anyio
async def test_replicas_at_which_nothing_listens_are_ejected_however_many() -> None:
    expert, _, _ = made(error(ExpertUnreachable), error(ExpertUnreachable))
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(ExpertUnavailable):
            await whole(expert)
    assert not expert.health.up
    assert expert.health.cause == "unreachable"


@pytest.mark.anyio
async def test_a_replica_whose_health_page_failed_is_ejected_however_many() -> None:
    expert, _, _ = made(error(ExpertTimeout), error(ExpertTimeout))
    for replica in expert.replicas:
        replica.alive = False
    for _ in range(4 * MAX_CONSECUTIVE_FAILURES):
        with pytest.raises((ExpertTimeout, ExpertUnavailable)):
            await expert.stream(CALL)
    assert not expert.health.up


# ------------------------------------------------------------------------------------------- the gateway


async def poisonable(request: web.Request) -> web.StreamResponse:
    """A server that answers 500 to requests with the word poison, and 200 to others."""
    if b"poison" in await request.read():
        return web.json_response({"error": {"message": "cuda died"}}, status=500)
    return await answering(request)


async def send_chat(gateway: Gateway, who: str, text: str) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {who}"}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=headers)


@pytest.mark.anyio
async def test_a_tenants_poisoned_requests_do_not_take_the_expert_from_the_others() -> None:
    async with (
        servers((poisonable, answering)) as (coder, general),
        gateway_over({"coder": f"{coder}/v1", "generalist": f"{general}/v1"}, access={"keys": KEYS}) as gateway,
    ):
        await send_chat(gateway, "alice", "code")
        for _ in range(10):
            for _ in range(4):
                poisoned = await send_chat(gateway, "mallory", "code poison")
                assert (poisoned.status, poisoned.headers["x-coe-cause"]) == (200, "server_error")
            mine = await send_chat(gateway, "alice", "code")
            assert (mine.headers["x-coe-expert"], mine.headers["x-coe-reason"]) == ("coder", "routed")


@pytest.mark.anyio
async def test_a_tenants_request_that_draws_429_does_not_rest_the_expert_for_the_others() -> None:
    async def limited(request: web.Request) -> web.StreamResponse:
        if b"poison" in await request.read():
            return web.json_response({"error": {"message": "too large"}}, status=429, headers={"retry-after": "60"})
        return await answering(request)

    async with (
        servers((limited, answering)) as (coder, general),
        gateway_over({"coder": f"{coder}/v1", "generalist": f"{general}/v1"}, access={"keys": KEYS}) as gateway,
    ):
        await send_chat(gateway, "alice", "code")
        for _ in range(3):
            poisoned = await send_chat(gateway, "mallory", "code poison")
            assert (poisoned.status, poisoned.headers["x-coe-cause"]) == (200, "rate_limited")
            mine = await send_chat(gateway, "alice", "code")
            assert (mine.headers["x-coe-expert"], mine.headers["x-coe-reason"]) == ("coder", "routed")
        assert poisoned.headers["x-coe-attempts"] == "1"  # its own tenant is kept away for as long as the server said


@pytest.mark.anyio
async def test_an_expert_that_fails_for_all_tenants_is_still_kept_out() -> None:
    async with (
        servers((refusing(500), answering)) as (coder, general),
        gateway_over({"coder": f"{coder}/v1", "generalist": f"{general}/v1"}, access={"keys": KEYS}) as gateway,
    ):
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            for who in ("alice", "bob"):
                answered = await send_chat(gateway, who, "code")
    assert (answered.headers["x-coe-attempts"], answered.headers["x-coe-cause"]) == ("1", "server_error")


@pytest.mark.anyio
async def test_a_dead_port_that_one_tenant_meets_is_kept_out_for_all() -> None:
    async with (
        servers((answering,)) as (general,),
        gateway_over({"coder": f"{closed_port()}/v1", "generalist": f"{general}/v1"}, access={"keys": KEYS}) as gateway,
    ):
        await send_chat(gateway, "bob", "code")
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            await send_chat(gateway, "alice", "code")
        kept_away = await send_chat(gateway, "bob", "code")
    assert kept_away.headers["x-coe-attempts"] == "1"
    assert kept_away.headers["x-coe-cause"] == "connection_refused"
