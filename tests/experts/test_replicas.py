"""ReplicatedExpert: which replica is asked, what it learns from the answer, and how the expert stands."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.core import Call
from coe.errors import (
    ExpertBusy,
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
    InvalidRequest,
)
from coe.experts.breaker import MAX_CONSECUTIVE_FAILURES
from coe.experts.replicas import LOAD_BOUND, MIN_TIMES, Replica, ReplicatedExpert, preferred_replica
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.fakes import ScriptedExpert

pytestmark = pytest.mark.anyio
CALL = Call({}, True, 5, 5)
WHOLE = (b"one", b"two")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(*scripts: Any, **spec: Any) -> tuple[ReplicatedExpert, list[ScriptedExpert], Clock]:
    """An expert with one scripted replica for each script."""
    clock = Clock()
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


async def test_the_expert_answers_in_its_replicas_words_and_holds_them_to_the_last_byte() -> None:
    expert, (server,), _ = made(WHOLE)
    reply = await expert.stream(CALL)
    assert expert.replicas[0].in_flight == 1
    assert (reply.media_type, reply.usage.output_tokens) == ("text/event-stream", 5)
    assert [chunk async for chunk in reply.chunks()] == [b"one", b"two"]
    assert expert.replicas[0].in_flight == 0
    await reply.aclose()
    await reply.aclose()
    assert expert.replicas[0].in_flight == 0
    assert server.replies[0].closed


async def test_a_reply_that_is_left_is_let_go_once_and_counts_as_nothing() -> None:
    expert, (server,), _ = made((*WHOLE, error(ExpertUnavailable)))
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        reply = await expert.stream(CALL)
        chunks = reply.chunks()
        await anext(chunks)
        await chunks.aclose()
        assert expert.replicas[0].in_flight == 1
        await reply.aclose()
        assert expert.replicas[0].in_flight == 0
    assert all(reply.closed for reply in server.replies)
    assert expert.health.up


@pytest.mark.parametrize("kind", [ExpertUnavailable, ExpertTimeout, ExpertInvalidResponse])
async def test_replicas_that_fail_are_not_asked_for_a_while(kind: type[Any]) -> None:
    expert, (server,), clock = made(error(kind))
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(kind):
            await whole(expert)
    assert not expert.health.up
    with pytest.raises(ExpertUnavailable, match=r"'clever' failed too often lately; next attempt in 1\.0 s") as no:
        await whole(expert)
    assert (no.value.retry_after, no.value.request_sent, len(server.calls)) == (1.0, False, MAX_CONSECUTIVE_FAILURES)
    clock.now += 1
    server.script = WHOLE
    assert expert.health.up
    assert await whole(expert) == [b"one", b"two"]
    assert expert.replicas[0].state == "closed"


async def test_while_one_request_tries_a_replica_again_the_others_are_told_when_to_come_back() -> None:
    expert, (server,), clock = made(error(ExpertUnavailable))
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(ExpertUnavailable):
            await whole(expert)
    clock.now += 1
    server.script = asyncio.Event()
    trial = asyncio.create_task(whole(expert))
    await asyncio.sleep(0)
    with pytest.raises(ExpertUnavailable) as no:
        await whole(expert)
    assert no.value.retry_after == 1.0
    server.script.set()
    assert await trial == []
    assert expert.health.up


async def test_an_answer_that_breaks_off_is_a_failure() -> None:
    expert, _, _ = made((b"one", error(ExpertUnavailable)))
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(ExpertUnavailable):
            await whole(expert)
    assert (expert.health.up, expert.replicas[0].in_flight) == (False, 0)


async def test_a_whole_answer_among_failures_counts_for_the_server_and_one_that_is_left_does_not() -> None:
    for left in (False, True):
        expert, (server,), _ = made(error(ExpertUnavailable))
        await fail(expert, MAX_CONSECUTIVE_FAILURES - 1)
        server.script = WHOLE
        await ((await expert.stream(CALL)).aclose() if left else whole(expert))
        server.script = error(ExpertUnavailable)
        await fail(expert, MAX_CONSECUTIVE_FAILURES - 1 if not left else 1)
        assert expert.health.up != left


async def fail(expert: ReplicatedExpert, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ExpertUnavailable):
            await whole(expert)


@pytest.mark.parametrize(
    "raised", [error(ExpertRejected), error(ExpertUnavailable, unhealthy=False), error(ExpertBusy)]
)
async def test_what_is_not_the_servers_fault_is_not_held_against_it(raised: Exception) -> None:
    expert, _, _ = made(raised)
    for _ in range(4 * MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(type(raised)):
            await whole(expert)
    assert expert.health.up


async def test_a_request_that_could_not_be_sent_counts_as_nothing() -> None:
    expert, (server,), _ = made(error(ExpertUnavailable))
    for number in range(2 * MAX_CONSECUTIVE_FAILURES):
        server.script = InvalidRequest("deep") if number % 2 else error(ExpertUnavailable)
        with pytest.raises((InvalidRequest, ExpertUnavailable)):
            await whole(expert)
    assert not expert.health.up
    assert expert.replicas[0].in_flight == 0


async def test_a_busy_replica_rests_until_it_said_and_another_one_is_asked() -> None:
    expert, servers, clock = made(error(ExpertBusy, retry_after=7.0), WHOLE)
    answers = []
    for _ in range(4):
        try:
            answers.append(await whole(expert))
        except ExpertBusy:
            answers.append([])
    assert answers.count([]) == 1
    assert expert.replicas[0].state == "resting"
    servers[1].script = error(ExpertBusy, retry_after=9.0)
    with pytest.raises(ExpertBusy):
        await whole(expert)
    with pytest.raises(ExpertBusy, match=r"is rate limited; next attempt in 7\.0 s") as no:
        await whole(expert)
    assert (no.value.retry_after, no.value.request_sent) == (7.0, False)
    clock.now += 7
    assert expert.health.ready_replicas == 1


async def test_a_replica_that_cannot_be_reached_is_passed_over_within_the_call() -> None:
    expert, servers, _ = made(error(ExpertUnreachable), error(ExpertUnreachable), WHOLE)
    for _ in range(6):
        assert await whole(expert) == [b"one", b"two"]
    assert [len(server.calls) for server in servers[2:]] == [6]
    only, (server,), _ = made(error(ExpertUnreachable))
    with pytest.raises(ExpertUnreachable):
        await whole(only)
    assert len(server.calls) == 1


async def test_a_call_without_a_conversation_goes_where_there_is_least_to_do() -> None:
    expert, servers, _ = made(WHOLE, WHOLE, WHOLE)
    replies = [await expert.stream(CALL) for _ in range(6)]
    assert [len(server.calls) for server in servers] == [2, 2, 2]
    expert.replicas[0].queue_length = 5
    await replies[1].aclose()
    await expert.stream(CALL)
    assert [replica.outstanding for replica in expert.replicas] == [7, 2, 2]


async def test_a_conversation_stays_with_its_replica_and_leaves_one_that_just_failed() -> None:
    expert, servers, clock = made(WHOLE, WHOLE, WHOLE)
    call = replace(CALL, conversation=b"talk")
    for _ in range(4):
        await whole(expert, call)
    own = next(number for number, server in enumerate(servers) if server.calls)
    assert [len(server.calls) for server in servers].count(0) == 2
    servers[own].script = error(ExpertUnavailable)
    with pytest.raises(ExpertUnavailable):
        await whole(expert, call)
    assert await whole(expert, call) == [b"one", b"two"]
    servers[own].script = WHOLE
    clock.now += 1
    await whole(expert, call)
    assert len(servers[own].calls) == 6


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.binary(min_size=1, max_size=20))
def test_no_conversation_makes_one_replica_work_far_more_than_the_others(
    outstanding: list[int], conversation: bytes
) -> None:
    replicas = replicas_of(outstanding)
    chosen = preferred_replica(replicas, conversation)
    assert chosen.outstanding <= max(LOAD_BOUND * sum(outstanding) / len(outstanding) + 1, min(outstanding))


def test_a_replica_that_leaves_moves_only_its_own_conversations() -> None:
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


def test_load_is_the_work_over_what_the_ready_replicas_can_do() -> None:
    expert, _, _ = made(WHOLE, WHOLE, concurrent_requests=4)
    expert.replicas[0].in_flight = 6
    expert.replicas[1].queue_length = 1
    assert expert.health.load == 7 / 8
    expert.replicas[1].breaker.throttle(5)
    assert (expert.health.load, expert.health.ready_replicas) == (6 / 4, 1)


def test_without_a_declared_limit_an_expert_is_overloaded_when_each_replica_has_a_queue() -> None:
    expert, _, _ = made(WHOLE, WHOLE)
    expert.replicas[0].in_flight = 1000
    expert.replicas[0].queue_length = 3
    assert expert.health.load == 0
    expert.replicas[1].queue_length = 1
    assert expert.health.load == 1


async def test_the_usual_time_to_the_first_piece_is_known_after_enough_answers() -> None:
    expert, _, _ = made(WHOLE)
    for _ in range(MIN_TIMES - 1):
        await whole(expert)
    assert expert.health.ttft_p95 is None
    await whole(expert)
    assert expert.health.ttft_p95 == 0.0


def test_an_address_is_shown_without_what_it_may_hold_in_secret() -> None:
    replica = Replica(ScriptedExpert("x"), endpoint=Endpoint("http://user:word@host:81/v1/", "m"))
    assert (replica.address, replica.root) == ("host:81", "http://user:word@host:81")
    assert Replica(ScriptedExpert("x")).address == "provider"
