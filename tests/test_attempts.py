"""call_experts(): fallback order, retries, pauses and the reported error."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from coe.core import Call, Expert, Health
from coe.errors import (
    ExpertBusy,
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
    InvalidRequest,
)
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.registry import ExpertSpec
from coe.routing.composition import Attempts, call_experts
from coe.settings import Endpoint
from tests.fakes import ScriptedExpert, ScriptedReply

pytestmark = pytest.mark.anyio
ANSWER = (b"one",)


class SteppedExpert(ScriptedExpert):
    """An expert with one script for each call. The last one repeats."""

    def __init__(self, name: str, scripts: Sequence[Any] = (ANSWER,), health: Health | None = None) -> None:
        super().__init__(name)
        self.scripts = scripts
        self.health = health or Health()

    async def stream(self, call: Call) -> ScriptedReply:
        self.script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        return await super().stream(call)


def failed(kind: type[Any], **more: Any) -> Any:
    error = kind("no", expert="x", **({"status": 400} if kind is ExpertRejected else {}))
    for name, value in more.items():
        setattr(error, name, value)
    return error


@dataclass
class Accepted:
    """The expert whose reply was accepted, and the number of attempts."""

    expert: str
    attempts: int


async def call_all(
    *experts: Expert, max_attempts: int = 3, within: float = 60, attempts: Attempts | None = None
) -> Accepted:
    call = Call({}, True, 5, 5, conversation=b"talk")
    deadline, attempts = asyncio.get_running_loop().time() + within, attempts or Attempts()
    expert, _ = await call_experts(call, experts, max_attempts=max_attempts, deadline=deadline, attempts=attempts)
    return Accepted(expert, attempts.count)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of retries, in seconds; none takes time."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("coe.routing.composition.asyncio.sleep", pause)
    return made


async def test_the_first_expert_that_answers_is_accepted() -> None:
    first, second, third = SteppedExpert("a", [failed(ExpertTimeout)]), SteppedExpert("b"), SteppedExpert("c")
    accepted = await call_all(first, second, third)
    assert (accepted.expert, accepted.attempts) == ("b", 2)
    assert not third.calls


async def test_experts_at_an_unreachable_server_cost_no_attempts() -> None:
    servers = [ScriptedExpert(name, (b"one",)) for name in "bcde"]
    first = Replica(ScriptedExpert("a", failed(ExpertUnreachable)), endpoint=Endpoint("http://dead:1/v1", "m"))
    same_server = [Replica(server, endpoint=Endpoint("http://dead:1/v1", "m")) for server in servers[:3]]
    elsewhere = Replica(servers[3], endpoint=Endpoint("http://alive:1/v1", "m"))
    experts = [
        ReplicatedExpert(ExpertSpec(name=name, model="m", runtime="vllm"), replicas=[replica])
        for name, replica in zip("abcde", [first, *same_server, elsewhere], strict=True)
    ]
    accepted = await call_all(*experts, max_attempts=2)
    assert (accepted.expert, accepted.attempts) == ("e", 2)
    assert not any(server.calls for server in servers[:3])
    assert all(replica.breaker.state == "closed" for replica in same_server), (
        "the breakers of skipped experts are unchanged"
    )


async def test_a_request_that_the_first_expert_rejects_goes_to_no_other() -> None:
    second = SteppedExpert("b")
    with pytest.raises(ExpertRejected):
        await call_all(SteppedExpert("a", [failed(ExpertRejected)]), second)
    assert not second.calls


async def test_a_rejection_after_a_transient_error_is_not_final(
    pauses: list[float],
) -> None:
    busy, rejects = (
        SteppedExpert("a", [failed(ExpertBusy, retry_after=60.0)]),
        SteppedExpert("b", [failed(ExpertRejected)]),
    )
    assert (await call_all(busy, rejects, SteppedExpert("c"))).expert == "c"
    attempts = Attempts()
    with pytest.raises(ExpertBusy) as raised:
        await call_all(busy, rejects, attempts=attempts)
    assert (raised.value.retry_after, attempts.count) == (60.0, 2)
    later = SteppedExpert("a", [failed(ExpertBusy, retry_after=1.0), ANSWER])
    assert (await call_all(later, SteppedExpert("b", [failed(ExpertRejected)]))).expert == "a"


async def test_an_expert_whose_api_cannot_express_the_request_costs_no_attempt() -> None:
    untranslatable = SteppedExpert("a", [InvalidRequest("no such part")])
    accepted = await call_all(untranslatable, SteppedExpert("b"), max_attempts=1)
    assert (accepted.expert, accepted.attempts) == ("b", 1)
    with pytest.raises(ExpertUnavailable):
        await call_all(SteppedExpert("b", [failed(ExpertUnavailable)]), untranslatable, max_attempts=1)
    with pytest.raises(InvalidRequest, match="no such part"):
        await call_all(untranslatable, SteppedExpert("b", [InvalidRequest("neither this")]))


async def test_if_all_experts_rest_while_their_servers_answer_the_best_is_called(pauses: list[float]) -> None:
    servers = [ScriptedExpert(name, (b"one",)) for name in "abc"]
    replicas = [Replica(server, endpoint=Endpoint(f"http://{server.name}/v1", "m")) for server in servers]
    experts = [
        ReplicatedExpert(ExpertSpec(name=name, model="m", runtime="vllm"), replicas=[replica])
        for name, replica in zip("abc", replicas, strict=True)
    ]
    for replica in replicas:
        replica.breaker.open()
    replicas[0].checked(answers=False)
    accepted = await call_all(*experts)
    assert (accepted.expert, accepted.attempts) == ("b", 1)
    for replica in replicas[1:]:
        replica.breaker.open()
        replica.checked(answers=False)
    with pytest.raises(ExpertUnavailable):
        await call_all(*experts)
    assert ([len(server.calls) for server in servers], pauses) == ([0, 1, 0], [])


async def test_another_replica_is_called_before_the_next_expert() -> None:
    first = SteppedExpert("a", [failed(ExpertUnavailable), ANSWER], Health(ready_replicas=2))
    accepted = await call_all(first, SteppedExpert("b"))
    assert (accepted.expert, accepted.attempts) == ("a", 2)
    assert [call.conversation for call in first.calls] == [b"talk", b""]
    down = SteppedExpert("a", [failed(ExpertUnavailable)], Health(ready_replicas=2))
    assert (await call_all(down, SteppedExpert("b"))).attempts == 3
    assert len(down.calls) == 2


async def test_an_expert_that_did_not_receive_the_request_costs_no_attempt(pauses: list[float]) -> None:
    refused = failed(ExpertUnavailable, request_sent=False, retry_after=1.0)
    accepted = await call_all(
        SteppedExpert("a", [refused]), SteppedExpert("b", [failed(ExpertTimeout)]), SteppedExpert("c"), max_attempts=2
    )
    assert (accepted.expert, accepted.attempts) == ("c", 2)
    attempts = Attempts()
    with pytest.raises(ExpertUnavailable) as raised:
        await call_all(SteppedExpert("a", [refused]), attempts=attempts)
    assert (attempts.count, raised.value.retry_after, pauses) == (0, 1.0, [])


async def test_a_sole_expert_is_retried_after_its_retry_after(pauses: list[float]) -> None:
    accepted = await call_all(SteppedExpert("a", [failed(ExpertBusy, retry_after=1.0), ANSWER]))
    assert accepted.attempts == 2
    assert 1 <= pauses[0] <= 1.2


@pytest.mark.parametrize(("after", "within"), [(11.0, 60), (3.0, 2)])
async def test_no_pause_exceeds_the_limit_or_the_deadline(pauses: list[float], after: float, within: float) -> None:
    with pytest.raises(ExpertBusy) as raised:
        await call_all(SteppedExpert("a", [failed(ExpertBusy, retry_after=after)]), within=within)
    assert (raised.value.retry_after, pauses) == (after, [])


async def test_a_sole_unavailable_expert_is_retried_after_growing_pauses(pauses: list[float]) -> None:
    attempts = Attempts()
    with pytest.raises(ExpertUnavailable):
        await call_all(SteppedExpert("a", [failed(ExpertUnavailable)]), max_attempts=4, attempts=attempts)
    assert attempts.count == 4
    assert len(pauses) == 3
    assert 0.05 <= pauses[0] <= 0.15
    assert 0.2 <= pauses[2] <= 0.6


async def test_the_raised_error_is_the_one_a_client_can_act_on() -> None:
    kinds = (ExpertUnavailable, ExpertInvalidResponse, ExpertTimeout, ExpertBusy)
    for number, kind in enumerate(kinds, start=1):
        attempts = Attempts()
        with pytest.raises(kind):
            await call_all(
                *(SteppedExpert(kind.__name__, [failed(kind)]) for kind in kinds[:number]),
                max_attempts=number,
                attempts=attempts,
            )
        assert attempts.count == number
