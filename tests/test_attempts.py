"""first_answer(): whom it asks and when."""

import asyncio
from typing import Any

import pytest

from coe.core import Health
from coe.errors import (
    ExpertBusy,
    ExpertGarbage,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
    InvalidRequest,
)
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.registry import ExpertSpec
from coe.routing.attempts import Attempts
from coe.settings import Endpoint
from tests.fakes import ScriptedExpert
from tests.stepping import Steps, ask, failed, ticks

pytestmark = pytest.mark.anyio


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none takes time."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("coe.routing.attempts.asyncio.sleep", pause)
    return made


async def test_the_first_expert_that_answers_is_who_answers() -> None:
    first, second, third = Steps("a", [failed(ExpertTimeout)]), Steps("b"), Steps("c")
    accepted = await ask(first, second, third)
    assert (accepted.expert, accepted.attempts) == ("b", 2)
    assert not third.calls


async def test_no_more_are_asked_than_allowed() -> None:
    experts = [Steps(name, [failed(ExpertUnavailable)]) for name in "abcd"]
    attempts = Attempts()
    with pytest.raises(ExpertUnavailable):
        await ask(*experts, max_attempts=3, attempts=attempts)
    assert [len(expert.calls) for expert in experts] == [1, 1, 1, 0]
    assert attempts.begun == 3


@pytest.mark.parametrize("error", [failed(ExpertUnreachable), failed(ExpertUnavailable, full=True)])
async def test_experts_at_a_server_that_takes_no_connection_or_is_full_use_up_no_attempts(error: Exception) -> None:
    servers = [ScriptedExpert(name, (b"one",)) for name in "bcde"]
    first = Replica(ScriptedExpert("a", error), endpoint=Endpoint("http://dead:1/v1", "m"))
    beside = [Replica(server, endpoint=Endpoint("http://dead:1/v1", "m")) for server in servers[:3]]
    elsewhere = Replica(servers[3], endpoint=Endpoint("http://alive:1/v1", "m"))
    experts = [
        ReplicatedExpert(ExpertSpec(name=name, model="m", runtime="vllm"), replicas=[replica])
        for name, replica in zip("abcde", [first, *beside, elsewhere], strict=True)
    ]
    accepted = await ask(*experts, max_attempts=2)
    assert (accepted.expert, accepted.attempts) == ("e", 2)
    assert not any(server.calls for server in servers[:3])
    assert all(replica.breaker.healthy for replica in beside), "nothing was learnt about those that were not asked"


async def test_a_server_elsewhere_may_be_full_for_one_of_its_models_alone() -> None:
    urls = ("http://proxy:1/v1",)
    experts = [
        ReplicatedExpert(
            ExpertSpec(name=name, model=name, runtime="external", base_urls=urls),
            replicas=[Replica(ScriptedExpert(name, script), endpoint=Endpoint(urls[0], name))],
        )
        for name, script in (("a", failed(ExpertUnavailable, full=True)), ("b", (b"one",)))
    ]
    assert (await ask(*experts)).expert == "b"


async def test_when_all_are_at_a_server_that_takes_no_connection_that_is_what_is_told() -> None:
    experts = [
        ReplicatedExpert(
            ExpertSpec(name=name, model="m", runtime="vllm"),
            replicas=[
                Replica(ScriptedExpert(name, failed(ExpertUnreachable)), endpoint=Endpoint("http://dead:1/v1", "m"))
            ],
        )
        for name in "ab"
    ]
    attempts = Attempts()
    with pytest.raises(ExpertUnreachable, match="no") as raised:
        await ask(*experts, attempts=attempts)
    assert (raised.value.expert, attempts.begun) == ("x", 1)


async def test_a_request_that_the_first_to_judge_it_rejects_goes_to_no_other() -> None:
    second = Steps("b")
    with pytest.raises(ExpertRejected):
        await ask(Steps("a", [failed(ExpertRejected)]), second)
    assert not second.calls


async def test_who_rejects_it_after_others_failed_for_a_time_does_not_have_the_client_give_up(
    pauses: list[float],
) -> None:
    busy, rejects = Steps("a", [failed(ExpertBusy, retry_after=60.0)]), Steps("b", [failed(ExpertRejected)])
    assert (await ask(busy, rejects, Steps("c"))).expert == "c"
    attempts = Attempts()
    with pytest.raises(ExpertBusy) as raised:
        await ask(busy, rejects, attempts=attempts)
    assert (raised.value.retry_after, attempts.begun) == (60.0, 2)
    later = Steps("a", [failed(ExpertBusy, retry_after=1.0), 0])
    assert (await ask(later, Steps("b", [failed(ExpertRejected)]))).expert == "a"


async def test_an_expert_whose_api_has_no_words_for_it_is_passed_over_at_no_attempt() -> None:
    wordless = Steps("a", [InvalidRequest("no such part")])
    accepted = await ask(wordless, Steps("b"), max_attempts=1)
    assert (accepted.expert, accepted.attempts) == ("b", 1)
    with pytest.raises(ExpertUnavailable):
        await ask(Steps("b", [failed(ExpertUnavailable)]), wordless, max_attempts=1)
    with pytest.raises(InvalidRequest, match="no such part"):
        await ask(wordless, Steps("b", [InvalidRequest("nor this")]))


async def test_an_expert_with_another_replica_is_asked_there_before_the_next_one() -> None:
    first = Steps("a", [failed(ExpertUnavailable), 0], Health(ready=2))
    accepted = await ask(first, Steps("b"))
    assert (accepted.expert, accepted.attempts) == ("a", 2)
    assert [call.conversation for call in first.calls] == [b"talk", b""]
    down = Steps("a", [failed(ExpertUnavailable)], Health(ready=2))
    assert (await ask(down, Steps("b"))).attempts == 3
    assert len(down.calls) == 2


async def test_an_expert_that_could_not_be_asked_costs_no_attempt(pauses: list[float]) -> None:
    refused = failed(ExpertUnavailable, asked=False, retry_after=1.0)
    accepted = await ask(Steps("a", [refused]), Steps("b", [failed(ExpertTimeout)]), Steps("c"), max_attempts=2)
    assert (accepted.expert, accepted.attempts) == ("c", 2)
    attempts = Attempts()
    with pytest.raises(ExpertUnavailable) as raised:
        await ask(Steps("a", [refused]), attempts=attempts)
    assert (attempts.begun, raised.value.retry_after, pauses) == (0, 1.0, [])


async def test_a_lone_expert_that_says_when_to_come_again_is_asked_again_then(pauses: list[float]) -> None:
    accepted = await ask(Steps("a", [failed(ExpertBusy, retry_after=1.0), 0]))
    assert accepted.attempts == 2
    assert 1 <= pauses[0] <= 1.2


async def test_the_soonest_of_several_is_waited_for_once_all_have_failed(pauses: list[float]) -> None:
    first = Steps("a", [failed(ExpertBusy, retry_after=5.0)])
    second = Steps("b", [failed(ExpertUnavailable, retry_after=2.0), 0])
    accepted = await ask(first, second)
    assert (accepted.expert, accepted.attempts) == ("b", 3)
    assert 2 <= pauses[0] <= 2.3


@pytest.mark.parametrize(("after", "within"), [(11.0, 60), (3.0, 2)])
async def test_nobody_is_waited_for_too_long_or_past_the_deadline(
    pauses: list[float], after: float, within: float
) -> None:
    with pytest.raises(ExpertBusy) as raised:
        await ask(Steps("a", [failed(ExpertBusy, retry_after=after)]), within=within)
    assert (raised.value.retry_after, pauses) == (after, [])


async def test_a_lone_expert_that_refused_is_asked_again_after_growing_pauses(pauses: list[float]) -> None:
    attempts = Attempts()
    with pytest.raises(ExpertUnavailable):
        await ask(Steps("a", [failed(ExpertUnavailable)]), max_attempts=4, attempts=attempts)
    assert attempts.begun == 4
    assert len(pauses) == 3
    assert 0.05 <= pauses[0] <= 0.15
    assert 0.2 <= pauses[2] <= 0.6


@pytest.mark.parametrize("kind", [ExpertTimeout, ExpertGarbage])
async def test_a_lone_expert_that_was_slow_or_mad_is_not_asked_again(pauses: list[float], kind: type[Any]) -> None:
    with pytest.raises(kind):
        await ask(Steps("a", [failed(kind)]))
    assert pauses == []


async def test_the_error_told_is_the_one_a_client_can_act_on() -> None:
    kinds = (ExpertUnavailable, ExpertGarbage, ExpertTimeout, ExpertBusy)
    for number, kind in enumerate(kinds, start=1):
        attempts = Attempts()
        with pytest.raises(kind):
            await ask(
                *(Steps(kind.__name__, [failed(kind)]) for kind in kinds[:number]),
                max_attempts=number,
                attempts=attempts,
            )
        assert attempts.begun == number


async def test_an_ask_counts_from_when_it_is_made_not_from_when_it_is_waited_for() -> None:
    busy, attempts = Steps("a", [failed(ExpertBusy, retry_after=9.0), "hang"]), Attempts()
    asking = asyncio.create_task(ask(Steps("b", [failed(ExpertUnavailable, asked=False)]), busy, attempts=attempts))
    await ticks(20)
    asking.cancel()
    await asyncio.wait([asking])
    assert (len(busy.calls), attempts.begun) == (1, 1)
