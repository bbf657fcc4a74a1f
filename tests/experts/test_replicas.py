"""ReplicatedExpert: replica selection, outcomes, and the expert's health."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.core import Call
from coe.errors import (
    ExpertBusy,
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
)
from coe.experts.replicas import (
    COOL_DOWN,
    LOAD_BOUND,
    MAX_CALLERS,
    MAX_FAILURES,
    Replica,
    ReplicatedExpert,
    preferred_replica,
)
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.fakes import ScriptedExpert
from tests.waiting import ManualClock

pytestmark = pytest.mark.anyio
CALL = Call({}, True, 5, 5)
WHOLE = (b"one", b"two")


def made(*scripts: Any, **spec: Any) -> tuple[ReplicatedExpert, list[ScriptedExpert], ManualClock]:
    """An expert with one scripted replica for each script."""
    clock = ManualClock()
    urls = [f"http://host{number}/v1" for number in range(len(scripts))]
    declared = {"name": "clever", "model": "m", "runtime": "external", "base_urls": urls}
    servers = [ScriptedExpert(url, script) for url, script in zip(urls, scripts, strict=True)]
    replicas = [
        Replica(server, endpoint=Endpoint(url, "m"), clock=clock) for server, url in zip(servers, urls, strict=True)
    ]
    return ReplicatedExpert(ExpertSpec.model_validate(declared | spec), replicas=replicas, clock=clock), servers, clock


def error(kind: type[Any], **more: Any) -> Any:
    raised = kind("no", expert="clever", **({"status": 400} if kind is ExpertRejected else {}))
    for name, value in more.items():
        setattr(raised, name, value)
    return raised


async def whole(expert: ReplicatedExpert, call: Call = CALL) -> list[bytes]:
    reply = await expert.stream(call)
    chunks = [chunk async for chunk in reply.chunks()]
    await reply.aclose()
    return chunks


@pytest.mark.parametrize("kind", [ExpertUnavailable, ExpertTimeout, ExpertInvalidResponse])
async def test_failed_replicas_receive_no_requests_for_a_cool_down(kind: type[Any]) -> None:
    expert, (server,), clock = made(error(kind))
    for _ in range(MAX_FAILURES):
        with pytest.raises(kind):
            await whole(expert)
    assert not expert.health.up
    with pytest.raises(ExpertUnavailable, match=r"no server that accepts .* [0-5]\.\d s") as no:
        await whole(expert)
    assert (no.value.request_sent, no.value.may_be_forced, len(server.calls)) == (False, True, MAX_FAILURES)
    assert 0 < (no.value.retry_after or 0) <= COOL_DOWN
    with pytest.raises(kind):  # sent all the same
        await whole(expert, replace(CALL, forced=True))
    expert.replicas[0].checked(answers=False)
    with pytest.raises(ExpertUnavailable, match="no server that accepts"):
        await whole(expert, replace(CALL, forced=True))
    clock.now += COOL_DOWN
    server.script = WHOLE
    assert expert.health.up
    assert await whole(expert) == [b"one", b"two"]
    assert expert.replicas[0].breaker.state == "closed"


@pytest.mark.parametrize(
    "raised", [error(ExpertRejected), error(ExpertUnavailable, unhealthy=False), error(ExpertBusy)]
)
async def test_errors_of_the_request_do_not_count_as_failures(raised: Exception) -> None:
    expert, _, _ = made(raised)
    for _ in range(4 * MAX_FAILURES):
        with pytest.raises(type(raised)):
            await whole(expert)
    assert expert.health.up


async def test_a_throttled_replica_is_skipped_until_its_retry_after() -> None:
    expert, servers, clock = made(error(ExpertBusy, retry_after=7.0), WHOLE)
    answers = []
    for _ in range(4):
        try:
            answers.append(await whole(expert))
        except ExpertBusy:
            answers.append([])
    assert answers.count([]) == 1
    assert expert.replicas[0].breaker.state == "rate_limited"
    servers[1].script = error(ExpertBusy, retry_after=9.0)
    with pytest.raises(ExpertBusy):
        await whole(expert)
    with pytest.raises(ExpertBusy, match=r"is rate limited; next attempt in 7\.0 s") as no:
        await whole(expert)
    assert (no.value.retry_after, no.value.request_sent) == (7.0, False)
    clock.now += 7
    assert expert.health.ready_replicas == 1


ALICE, MALLORY = replace(CALL, caller="alice"), replace(CALL, caller="mallory")


@pytest.mark.parametrize("raised", [error(ExpertUnavailable), error(ExpertBusy, retry_after=60.0)])
async def test_an_expert_that_fails_for_one_caller_rests_for_that_caller_alone(raised: Any) -> None:
    expert, (server,), clock = made(raised)

    async def fail(call: Call) -> int:
        before = len(server.calls)
        for _ in range(MAX_FAILURES + 1):
            with pytest.raises(type(raised)):
                await whole(expert, call)
        return len(server.calls) - before

    assert await fail(MALLORY) <= MAX_FAILURES
    assert expert.health.up
    server.script = WHOLE
    assert await whole(expert, ALICE) == [b"one", b"two"]
    with pytest.raises(type(raised)):
        await whole(expert, MALLORY)
    server.script = raised
    assert await fail(ALICE) <= MAX_FAILURES
    assert not expert.health.up  # it failed for two
    with pytest.raises(type(raised)) as rests:
        await whole(expert, replace(CALL, caller="bob"))
    assert not rests.value.request_sent
    server.script = WHOLE
    clock.now += 60.0
    for call in (ALICE, MALLORY):
        assert await whole(expert, call) == [b"one", b"two"]


async def test_a_server_that_cannot_be_reached_or_fails_its_check_rests_for_all_callers() -> None:
    expert, _, _ = made(error(ExpertUnreachable))
    for _ in range(MAX_FAILURES):
        with pytest.raises(ExpertUnreachable):
            await whole(expert, MALLORY)
    checked, _, _ = made(WHOLE)
    checked.replicas[0].checked(answers=False)
    for one in (expert, checked):
        with pytest.raises(ExpertUnavailable, match="no server that accepts"):
            await whole(one, ALICE)


async def test_the_callers_that_are_remembered_are_bounded() -> None:
    expert, _, _ = made(error(ExpertTimeout))
    for number in range(2 * MAX_CALLERS):
        with pytest.raises(ExpertTimeout):
            await whole(expert, replace(CALL, caller=f"k{number}", forced=True))
    assert len(expert.replicas[0].by_caller) == MAX_CALLERS


async def test_an_unreachable_replica_is_replaced_within_the_call() -> None:
    expert, servers, _ = made(error(ExpertUnreachable), error(ExpertUnreachable), WHOLE)
    for _ in range(6):
        assert await whole(expert) == [b"one", b"two"]
    assert [len(server.calls) for server in servers[2:]] == [6]
    only, (server,), _ = made(error(ExpertUnreachable))
    with pytest.raises(ExpertUnreachable):
        await whole(only)
    assert len(server.calls) == 1
    with pytest.raises(ExpertUnreachable) as excluded:
        await whole(only, replace(CALL, exclude=frozenset({"host0"})))
    assert (excluded.value.cause, excluded.value.retry_after) == ("unreachable", None)


async def test_a_call_without_a_conversation_uses_the_least_loaded_replica() -> None:
    expert, servers, _ = made(WHOLE, WHOLE, WHOLE)
    replies = [await expert.stream(CALL) for _ in range(6)]
    assert [len(server.calls) for server in servers] == [2, 2, 2]
    expert.replicas[0].queue_length = 5
    await replies[1].aclose()
    await expert.stream(CALL)
    assert [replica.outstanding for replica in expert.replicas] == [7, 2, 2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.binary(min_size=1, max_size=20))
def test_conversation_affinity_keeps_the_load_bound(outstanding: list[int], conversation: bytes) -> None:
    replicas = replicas_of(outstanding)
    chosen = preferred_replica(replicas, conversation)
    assert chosen.outstanding <= max(LOAD_BOUND * sum(outstanding) / len(outstanding) + 1, min(outstanding))


def test_removing_a_replica_moves_only_its_own_conversations() -> None:
    replicas = replicas_of([0, 0, 0, 0])
    conversations = [str(number).encode() for number in range(400)]
    before = {talk: preferred_replica(replicas, talk) for talk in conversations}
    after = {talk: preferred_replica(replicas[:3], talk) for talk in conversations}
    assert all(after[talk] is before[talk] for talk in conversations if before[talk] is not replicas[3])
    shares = [sum(home is replica for home in before.values()) for replica in replicas]
    assert min(shares) > 60


def replicas_of(outstanding: Sequence[int]) -> list[Replica]:
    replicas = [
        Replica(ScriptedExpert("x"), endpoint=Endpoint(f"http://host{number}/v1", "m"))
        for number in range(len(outstanding))
    ]
    for replica, in_flight in zip(replicas, outstanding, strict=True):
        replica.in_flight = in_flight
    return replicas


def test_load_is_the_outstanding_work_over_the_capacity_of_the_ready_replicas() -> None:
    expert, _, _ = made(WHOLE, WHOLE, concurrent_requests=4)
    expert.replicas[0].in_flight = 6
    expert.replicas[1].queue_length = 1
    assert expert.health.load == 7 / 8
    expert.replicas[1].breaker.throttle(5)
    assert (expert.health.load, expert.health.ready_replicas) == (6 / 4, 1)
