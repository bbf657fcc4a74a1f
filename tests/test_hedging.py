"""first_answer(): two asks at once, and that no task, ask or reply is ever left behind."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.core import Call, Health
from coe.errors import ExpertBusy, ExpertRejected, ExpertTimeout, ExpertUnavailable, InvalidRequest
from coe.routing.attempts import Attempts
from tests.stepping import SLOW, Steps, ask, failed, ticks

pytestmark = pytest.mark.anyio


async def test_a_slow_expert_gets_company_and_the_first_piece_wins() -> None:
    first, second = Steps("a", ["hang"], SLOW), Steps("b")
    accepted = await ask(first, second, hedge=True)
    await ticks(3)
    assert (accepted.expert, accepted.attempts) == ("b", 2)
    assert (first.running, first.cancelled) == (0, 1)


async def test_a_slow_expert_that_still_comes_first_wins_and_the_other_is_given_up() -> None:
    first, second = Steps("a", [5], SLOW), Steps("b", ["hang"])
    accepted = await ask(first, second, hedge=True)
    await ticks(3)
    assert (accepted.expert, accepted.attempts, second.cancelled) == ("a", 2, 1)


async def test_of_two_that_answer_at_once_the_second_is_closed() -> None:
    first, second = Steps("a", [9], SLOW), Steps("b", [7])
    for lead in range(12):
        first.script, second.script = [9], [lead]
        accepted = await ask(first, second, hedge=True)
        await ticks(15)
        assert len(first.open_replies) + len(second.open_replies) == 1
        await accepted.reply.aclose()


async def test_company_is_another_replica_where_there_is_one() -> None:
    first, second = Steps("a", ["hang", 0], Health(ttft_p95=0.0, ready_replicas=2)), Steps("b")
    accepted = await ask(first, second, hedge=True)
    assert (accepted.expert, len(first.calls), len(second.calls)) == ("a", 2, 0)


async def test_plain_answers_get_no_company_for_their_time_tells_how_much_is_said() -> None:
    accepted = await ask(Steps("a", [9], SLOW), Steps("b"), call=Call({}, False, 5, 5), hedge=True)
    assert (accepted.expert, accepted.attempts) == ("a", 1)


async def test_a_fast_expert_and_one_of_unknown_pace_get_no_company() -> None:
    for health in (Health(ttft_p95=30.0), Health()):
        first, second = Steps("a", [9], health), Steps("b")
        assert (await ask(first, second, hedge=True)).attempts == 1
        assert not second.calls


@pytest.mark.parametrize("error", [failed(ExpertRejected), InvalidRequest("no words for it")])
async def test_company_that_cannot_take_the_request_does_not_end_the_first_ones_answer(error: Exception) -> None:
    accepted = await ask(Steps("a", [9], SLOW), Steps("b", [error]), hedge=True)
    assert accepted.expert == "a"


async def test_a_hedge_counts_as_an_attempt_and_there_are_never_more_than_two() -> None:
    experts, attempts = [Steps(name, ["hang"], SLOW) for name in "abc"], Attempts()
    asking = asyncio.create_task(ask(*experts, max_attempts=3, hedge=True, attempts=attempts))
    while not experts[1].calls:
        await asyncio.sleep(0)
    await ticks(20)
    assert [expert.running for expert in experts] == [1, 1, 0]
    asking.cancel()
    await asyncio.wait([asking])
    assert attempts.begun == 2
    lone = Steps("a", [5], SLOW)
    second = Steps("b")
    assert (await ask(lone, second, max_attempts=1, hedge=True)).attempts == 1
    assert not second.calls


async def test_when_one_of_two_fails_the_other_is_waited_for_and_when_both_do_the_next_is_asked() -> None:
    first, second = Steps("a", [(9, failed(ExpertUnavailable))], SLOW), Steps("b", [12])
    assert (await ask(first, second, hedge=True)).expert == "b"
    first, second = Steps("a", [12], SLOW), Steps("b", [(2, failed(ExpertUnavailable))])
    assert (await ask(first, second, hedge=True)).expert == "a"
    first, second = (Steps(name, [(9, failed(ExpertUnavailable))], SLOW) for name in "ab")
    accepted = await ask(first, second, Steps("c"), hedge=True)
    assert (accepted.expert, accepted.attempts) == ("c", 3)


async def test_a_body_that_the_first_rejects_ends_a_race_and_lets_the_other_go() -> None:
    first, second = Steps("a", [(9, failed(ExpertRejected))], SLOW), Steps("b", ["hang"])
    with pytest.raises(ExpertRejected):
        await ask(first, second, hedge=True)
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
experts = st.lists(st.builds(Steps, st.just("x"), scripts, health_by_expert), min_size=1, max_size=3)


@given(experts, st.integers(1, 4), st.integers(0, 40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_cancelled_at_any_moment_it_leaves_no_task_no_ask_and_no_open_reply(
    experts: list[Steps], max_attempts: int, moment: int, hedge: bool
) -> None:
    async def run() -> None:
        asking = asyncio.create_task(ask(*experts, max_attempts=max_attempts, hedge=hedge))
        await ticks(moment)
        asking.cancel()
        await asyncio.wait([asking])
        accepted = None if asking.cancelled() or asking.exception() else asking.result()
        await ticks(20)
        assert len(asyncio.all_tasks()) == 1
        assert all(expert.running == 0 for expert in experts)
        still_open = [reply for expert in experts for reply in expert.open_replies]
        assert still_open == ([accepted.reply] if accepted else [])
        assert sum(len(expert.calls) for expert in experts) <= max_attempts

    asyncio.run(run())
