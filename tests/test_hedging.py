"""call_experts() with hedging: parallel calls, and no task, call or reply is ever leaked."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.core import Call, Health
from coe.errors import ExpertBusy, ExpertRejected, ExpertTimeout, ExpertUnavailable, InvalidRequest
from coe.routing.attempts import Attempts
from tests.stepped_experts import SLOW, SteppedExpert, call_all, failed, ticks

pytestmark = pytest.mark.anyio


async def test_a_slow_expert_is_hedged_and_the_first_chunk_wins() -> None:
    first, second = SteppedExpert("a", ["hang"], SLOW), SteppedExpert("b")
    accepted = await call_all(first, second, hedge=True)
    await ticks(3)
    assert (accepted.expert, accepted.attempts) == ("b", 2)
    assert (first.running, first.cancelled) == (0, 1)


async def test_a_slow_expert_that_still_answers_first_wins_and_the_hedge_is_cancelled() -> None:
    first, second = SteppedExpert("a", [5], SLOW), SteppedExpert("b", ["hang"])
    accepted = await call_all(first, second, hedge=True)
    await ticks(3)
    assert (accepted.expert, accepted.attempts, second.cancelled) == ("a", 2, 1)


async def test_of_two_replies_in_the_same_tick_the_second_is_closed() -> None:
    first, second = SteppedExpert("a", [9], SLOW), SteppedExpert("b", [7])
    for lead in range(12):
        first.script, second.script = [9], [lead]
        accepted = await call_all(first, second, hedge=True)
        await ticks(15)
        assert len(first.open_replies) + len(second.open_replies) == 1
        await accepted.reply.aclose()


async def test_the_hedge_goes_to_another_replica_if_there_is_one() -> None:
    first, second = SteppedExpert("a", ["hang", 0], Health(ttft_p95=0.0, ready_replicas=2)), SteppedExpert("b")
    accepted = await call_all(first, second, hedge=True)
    assert (accepted.expert, len(first.calls), len(second.calls)) == ("a", 2, 0)


async def test_requests_without_streaming_are_not_hedged() -> None:
    accepted = await call_all(SteppedExpert("a", [9], SLOW), SteppedExpert("b"), call=Call({}, False, 5, 5), hedge=True)
    assert (accepted.expert, accepted.attempts) == ("a", 1)


async def test_a_fast_expert_and_one_of_unknown_latency_are_not_hedged() -> None:
    for health in (Health(ttft_p95=30.0), Health()):
        first, second = SteppedExpert("a", [9], health), SteppedExpert("b")
        assert (await call_all(first, second, hedge=True)).attempts == 1
        assert not second.calls


@pytest.mark.parametrize("error", [failed(ExpertRejected), InvalidRequest("not translatable")])
async def test_a_hedge_that_rejects_the_request_does_not_end_the_first_call(error: Exception) -> None:
    accepted = await call_all(SteppedExpert("a", [9], SLOW), SteppedExpert("b", [error]), hedge=True)
    assert accepted.expert == "a"


async def test_a_hedge_counts_as_an_attempt_and_there_are_never_more_than_two() -> None:
    experts, attempts = [SteppedExpert(name, ["hang"], SLOW) for name in "abc"], Attempts()
    calling = asyncio.create_task(call_all(*experts, max_attempts=3, hedge=True, attempts=attempts))
    while not experts[1].calls:
        await asyncio.sleep(0)
    await ticks(20)
    assert [expert.running for expert in experts] == [1, 1, 0]
    calling.cancel()
    await asyncio.wait([calling])
    assert attempts.count == 2
    lone = SteppedExpert("a", [5], SLOW)
    second = SteppedExpert("b")
    assert (await call_all(lone, second, max_attempts=1, hedge=True)).attempts == 1
    assert not second.calls


async def test_if_one_call_fails_the_other_continues_and_if_both_fail_the_next_expert_is_called() -> None:
    first, second = SteppedExpert("a", [(9, failed(ExpertUnavailable))], SLOW), SteppedExpert("b", [12])
    assert (await call_all(first, second, hedge=True)).expert == "b"
    first, second = SteppedExpert("a", [12], SLOW), SteppedExpert("b", [(2, failed(ExpertUnavailable))])
    assert (await call_all(first, second, hedge=True)).expert == "a"
    first, second = (SteppedExpert(name, [(9, failed(ExpertUnavailable))], SLOW) for name in "ab")
    accepted = await call_all(first, second, SteppedExpert("c"), hedge=True)
    assert (accepted.expert, accepted.attempts) == ("c", 3)


async def test_a_rejection_by_the_first_expert_cancels_the_hedge() -> None:
    first, second = SteppedExpert("a", [(9, failed(ExpertRejected))], SLOW), SteppedExpert("b", ["hang"])
    with pytest.raises(ExpertRejected):
        await call_all(first, second, hedge=True)
    await ticks(3)
    assert second.running == 0


scripts = st.lists(
    st.one_of(
        st.integers(0, 6),
        st.just("hang"),
        st.tuples(
            st.integers(0, 6),
            st.sampled_from([ExpertUnavailable, ExpertBusy, ExpertTimeout, ExpertRejected]).map(failed),
        ),
    ),
    min_size=1,
    max_size=3,
)
health_by_expert = st.sampled_from(
    [Health(), SLOW, Health(ttft_p95=0.0, ready_replicas=2), Health(ready_replicas=2), Health(ttft_p95=30.0)]
)
experts = st.lists(st.builds(SteppedExpert, st.just("x"), scripts, health_by_expert), min_size=1, max_size=3)


@given(experts, st.integers(1, 4), st.integers(0, 40), st.booleans())
@settings(max_examples=300)
def test_cancellation_at_any_moment_leaks_no_task_call_or_reply(
    experts: list[SteppedExpert], max_attempts: int, moment: int, hedge: bool
) -> None:
    async def run() -> None:
        calling = asyncio.create_task(call_all(*experts, max_attempts=max_attempts, hedge=hedge))
        await ticks(moment)
        calling.cancel()
        await asyncio.wait([calling])
        accepted = None if calling.cancelled() or calling.exception() else calling.result()
        await ticks(20)
        assert len(asyncio.all_tasks()) == 1
        assert all(expert.running == 0 for expert in experts)
        still_open = [reply for expert in experts for reply in expert.open_replies]
        assert still_open == ([accepted.reply] if accepted else [])
        assert sum(len(expert.calls) for expert in experts) <= max_attempts

    asyncio.run(run())
