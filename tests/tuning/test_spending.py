"""The budget of `coe tune`: no call starts that could break it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from coe.core import Call
from coe.errors import ExpertBusy, ExpertTimeout
from coe.measuring.scoring_run import StopScoring
from coe.measuring.spending import MeteredExpert, Spending, worst_price
from coe.registry import ExpertSpec
from tests.fakes import ScriptedReply
from tests.score.answering import AnsweringExpert, completion

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hello"}]


def spec_of(**fields: Any) -> ExpertSpec:
    usual = {"name": "large", "model": "m", "runtime": "external", "base_url": "http://host/v1"}
    return ExpertSpec.model_validate(usual | {"prices": {"input": 1.0, "output": 10.0}} | fields)


def call() -> Call:
    return Call({"messages": MESSAGES}, False, 5.0, 5.0)


async def answered(expert: MeteredExpert) -> None:
    reply = await expert.stream(call())
    try:
        async for _ in reply.chunks():
            pass
    finally:
        await reply.aclose()


def test_the_worst_price_is_that_of_the_longest_answer() -> None:
    unlimited, limited = spec_of(context_length=1000), spec_of(parameters={"max_tokens": 100})
    assert worst_price(unlimited, MESSAGES) == pytest.approx((5 + 32 + 10_000) / 1e6)
    assert worst_price(limited, MESSAGES) == pytest.approx((5 + 32 + 1000) / 1e6)
    tools = [{"type": "function", "function": {"name": "search", "description": "x" * 10_000}}]
    equipped = spec_of(parameters={"max_tokens": 100, "tools": tools})  # declared fields are input too
    more = worst_price(equipped, MESSAGES) - worst_price(limited, MESSAGES)
    assert more == pytest.approx((len(orjson.dumps({"tools": tools}))) / 1e6)


async def test_a_call_that_could_break_the_budget_does_not_start() -> None:
    spec = spec_of(parameters={"max_tokens": 100})
    worst = worst_price(spec, MESSAGES)
    spending = Spending(dollars=1.5 * worst)
    asked = AnsweringExpert("large", lambda _: "right")
    expert = MeteredExpert(asked, spec, spending)  # type: ignore[arg-type]
    spending.reserve(worst)
    with pytest.raises(StopScoring):
        await answered(expert)
    assert asked.questions == []
    spending.settle(worst, 0.0)
    await answered(expert)
    assert spending.reserved == pytest.approx(0.0)
    assert spending.spent + spending.reserved <= 1.5 * worst


async def test_calls_are_settled_by_their_usage_and_failures_by_what_they_may_cost() -> None:
    spec, spending = spec_of(parameters={"max_tokens": 100}), Spending()
    worst = worst_price(spec, MESSAGES)
    errors = [ExpertBusy("busy", expert="large"), ExpertTimeout("late", expert="large")]
    expert = MeteredExpert(AnsweringExpert("large", lambda _: errors.pop(0)), spec, spending)  # type: ignore[arg-type]
    with pytest.raises(ExpertBusy):
        await answered(expert)
    assert spending.spent == 0.0  # refused
    with pytest.raises(ExpertTimeout):
        await answered(expert)
    assert spending.spent == pytest.approx(worst)  # the server may have worked on it


class BilledExpert:
    """Records the fields of its calls. `tokens` maps them to the billed output tokens."""

    name = "large"

    def __init__(self, tokens: Callable[[Mapping[str, Any]], int]) -> None:
        self.fields: list[Mapping[str, Any]] = []
        self._tokens = tokens

    async def stream(self, call: Call) -> ScriptedReply:
        self.fields.append(call.fields)
        reply = ScriptedReply([orjson.dumps(completion("right"))], stream=False)
        reply.usage.output_tokens = self._tokens(call.fields)
        return reply


async def test_the_output_that_a_reservation_assumes_is_sent_with_the_call() -> None:
    asked = BilledExpert(lambda fields: fields["max_tokens"])  # as much as it may
    spending = Spending(dollars=0.1)
    expert = MeteredExpert(asked, spec_of(context_length=8192), spending)  # type: ignore[arg-type]
    await answered(expert)
    with pytest.raises(StopScoring):
        await answered(expert)
    assert [fields["max_tokens"] for fields in asked.fields] == [8192 - 5 - 32]
    assert 0.08 < spending.spent <= 0.1


async def test_a_server_that_exceeds_the_limit_gets_no_more_calls() -> None:
    asked, spending, lines = BilledExpert(lambda _: 100_000), Spending(dollars=10.0), list[str]()
    expert = MeteredExpert(asked, spec_of(), spending, report=lines.append)  # type: ignore[arg-type]
    await answered(expert)
    with pytest.raises(StopScoring):
        await answered(expert)
    assert len(asked.fields) == 1
    assert "large: a call that may cost at most $0.08159 was billed $1: its server exceeds" in lines[0]
