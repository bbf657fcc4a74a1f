"""Audits of recipes' answers: in process over fake members, and through the gateway."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import orjson
import pytest

from coe.core import Call, Health
from coe.errors import ExpertAsleep, ExpertUnavailable
from coe.records import Pending
from coe.records.codec import FEEDBACK
from coe.records.feedback import Feedback
from coe.registry import Registry
from coe.usage import RecipeLog
from gateway.observability.metrics import Metrics
from gateway.request import audits
from gateway.request.trace import Trace
from tests.fakes import Gateway, Response, ScriptedExpert, ScriptedReply, gateway_of, registry_of
from tests.recipes.members import answer, bytes_of, call_of, recipe_of, stream
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio
CASCADE = {"cascade": [["a", "b"], "large"]}
KEY = "sk-tests"


def members(**scripts: object) -> list[ScriptedExpert]:
    return [ScriptedExpert(name, script) for name, script in scripts.items()]


async def audited(*called: ScriptedExpert, draw: float = 0.0, streams: bool = False, **declared: Any) -> RecipeLog:
    """The log of one request of a recipe with an audit rate of 0.5, its answer read."""
    log, recipe = RecipeLog(), recipe_of(*called, **declared)
    recipe.audit_rate, recipe.draw = 0.5, lambda: draw
    await bytes_of(await recipe.stream(call_of(log=log, stream=streams)))
    return log


@pytest.mark.parametrize(("draw", "drawn"), [(0.0, True), (0.49, True), (0.5, False), (0.99, False)])
async def test_a_draw_below_the_rate_audits_the_answer(draw: float, drawn: bool) -> None:
    log = await audited(*members(a=answer("X"), b=answer("X"), large=answer("Y")), draw=draw, **CASCADE)
    assert (log.audit_rate, log.audited, log.audit is not None) == (0.5, drawn, drawn)


async def test_the_last_step_is_called_only_when_the_audit_runs_and_its_call_is_no_part_of_the_request() -> None:
    a, b, large = members(a=answer("X"), b=answer("X"), large=answer("X"))
    log = await audited(a, b, large, **CASCADE)
    assert large.calls == []
    assert log.audit is not None
    assert await log.audit.run() == "agreed"
    assert [call.expert for call in log.calls] == ["a", "b"]
    assert [(call.expert, call.step, call.outcome) for call in log.audit.calls] == [("large", 1, "answered")]


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (answer("X"), "agreed"),
        (answer("so it is X"), "agreed"),
        (answer("Y"), "agreed"),  # two votes for X outweigh it, as they would have after the last step
        (answer(None), "agreed"),
        (ExpertUnavailable("down", expert="large"), "failed"),
        (ExpertAsleep("asleep", expert="large"), "skipped_unavailable"),
    ],
)
async def test_the_policy_judges_all_answers_as_after_the_last_step(last: object, outcome: str) -> None:
    log = await audited(*members(a=answer("X"), b=answer("X"), large=last), **CASCADE)
    assert log.audit is not None
    assert await log.audit.run() == outcome


async def test_another_answer_of_the_last_step_differs() -> None:
    log = await audited(*members(a=answer("X"), large=answer("Y")), cascade=["a", "large"])
    assert log.audit is not None
    assert await log.audit.run() == "differed"


async def test_all_steps_that_were_left_out_are_called() -> None:
    four = members(a=answer("X"), b=answer("X"), c=answer("Y"), d=answer("Y"))
    log = await audited(*four, vote=["a", "b", "c", "d"], ask="until_agreed")
    assert log.audit is not None
    assert await log.audit.run() == "agreed"  # two against two: the first class stays
    assert [(call.expert, call.step) for call in log.audit.calls] == [("c", 2), ("d", 3)]


async def test_streams_are_compared_too() -> None:
    log = await audited(*members(a=stream("X"), large=stream("Y")), streams=True, cascade=["a", "large"])
    assert log.audit is not None
    assert await log.audit.run() == "differed"


async def test_after_the_last_step_nothing_is_left_to_call_and_unverified_answers_are_not_audited() -> None:
    log = await audited(*members(a=answer("X"), b=answer("Y"), large=answer("Y")), **CASCADE)
    assert (log.stop, log.audited, log.audit) == ("last_step", True, None)
    down = ExpertUnavailable("down", expert="large")
    log = await audited(*members(a=answer("X"), b=answer("Y"), large=down), **CASCADE)
    assert (log.stop, log.audited, log.audit_rate) == ("unavailable", False, 0.0)


async def test_an_audit_is_not_available_while_a_remaining_member_is_down_or_overloaded() -> None:
    a, b, large = members(a=answer("X"), b=answer("X"), large=answer("X"))
    log = await audited(a, b, large, **CASCADE)
    assert log.audit is not None
    assert log.audit.available
    for health in (Health(up=False), Health(load=1.0)):
        large.health = health
        assert not log.audit.available


# ------------------------------------------------------------------------------------------- through the gateway


def registry(rate: float = 1.0, **changes: Any) -> Registry:
    recipe = {"name": "careful", "cascade": [["coder", "painter"], "generalist"], "audit_rate": rate}
    return registry_of(recipes=[recipe], **changes)


async def send_chat(gateway: Gateway, *, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    body = {"model": "careful", "messages": [{"role": "user", "content": "hello general"}], **fields}
    sent = {"content-type": "application/json", **(headers or {})}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=sent)


async def audit_event(gateway: Gateway) -> Feedback:
    """The first event in the feedback log."""
    async with asyncio.timeout(60):
        while not gateway.log.events:
            await asyncio.sleep(0.001)
    return gateway.log.events[0]


async def test_the_client_gets_its_whole_answer_before_the_audit_calls_anybody() -> None:
    last = asyncio.Event()
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X"), generalist=last) as gateway:
        async with asyncio.timeout(60):  # the last step answers only when it may
            response = await send_chat(gateway)
        assert (response.status, response.body) == (200, answer("X")[0])
        assert {name: response.headers[f"x-coe-{name}"] for name in ("steps", "calls")} == {"steps": "1", "calls": "2"}
        await wait_until(lambda: gateway.experts["generalist"].calls)
        assert gateway.log.events == []
        assert b"coe_audits_in_flight 1" in (await gateway.post("/metrics", method="GET")).body
        last.set()
        event = await audit_event(gateway)
    assert (event.kind, event.value, event.request_id) == ("audit", "agreed", response.headers["x-request-id"])


async def test_the_outcome_is_an_event_with_the_request_and_the_record_has_the_rate() -> None:
    prices = {"prices": {"input": 1e6, "output": 1e6}}
    declared = registry(0.75)
    async with gateway_of(
        registry_of(
            recipes=[recipe.model_dump(exclude_defaults=True) for recipe in declared.declared_recipes],
            experts=[spec.model_dump(exclude_defaults=True) | prices for spec in declared.experts],
        ),
        coder=answer("X"),
        painter=answer("X"),
        generalist=answer("Y"),
    ) as gateway:
        for arm in gateway.serving_state.serving.composition.recipes.values():
            arm.draw = lambda: 0.7  # type: ignore[attr-defined]
        await send_chat(gateway)
        event = await audit_event(gateway)
        shown = await gateway.post(f"/v1/records/{event.request_id}", method="GET")
        metrics = (await gateway.post("/metrics", method="GET")).body.decode()
    (record,) = gateway.records
    assert (record.audit, record.audit_rate, record.recipe_stop) == ("started", 0.75, "accepted")
    assert (record.input_tokens, record.output_tokens, record.cost) == (6, 10, 16)
    assert event.audit is not None
    assert (event.audit.recipe, event.audit.arm, event.audit.rate) == ("careful", "careful@2", 0.75)
    assert event.audit.cost == 8
    (call,) = event.audit.calls
    assert (call.expert, call.input_tokens, call.output_tokens) == ("generalist", 3, 5)
    (feedback,) = shown.json["feedback"]
    assert (feedback["kind"], feedback["audit"]["calls"][0]["expert"]) == ("audit", "generalist")
    assert 'coe_audits_total{recipe="careful",outcome="agreed"} 1' in metrics
    assert 'coe_audit_tokens_total{expert="generalist",kind="output"} 5' in metrics
    assert 'coe_audit_cost_dollars_total{expert="generalist"} 8' in metrics
    assert 'coe_tokens_total{expert="generalist"' not in metrics
    assert FEEDBACK.decode(FEEDBACK.encode(event)) == event


class ExpensiveExpert(ScriptedExpert):
    """Its answers have 5,000 output tokens."""

    async def stream(self, call: Call) -> ScriptedReply:
        reply = await super().stream(call)
        reply.usage.output_tokens = 5_000
        return reply


async def test_a_key_is_not_charged_for_an_audit() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    key = {"name": "k", "sha256": digest, "tenant": "t", "limits": {"tokens_per_minute": 2000}}
    declared, headers = registry(access={"keys": [key]}), {"authorization": f"Bearer {KEY}"}
    last = {"generalist": ExpensiveExpert("generalist", answer("X"))}
    async with gateway_of(declared, real_experts=last, coder=answer("X"), painter=answer("X")) as gateway:
        await send_chat(gateway, headers=headers, max_tokens=10)
        event = await audit_event(gateway)
        response = await send_chat(gateway, headers=headers, max_tokens=10)
    assert (event.value, event.tenant, event.key) == ("agreed", "t", None)
    assert event.audit is not None
    assert event.audit.calls[0].output_tokens == 5_000
    assert int(response.headers["x-ratelimit-remaining-tokens"]) > 1_900


async def test_the_default_audits_recipes_with_a_bound_only() -> None:
    members = ["coder", "generalist"]
    named = [
        {"name": "free", "cascade": members},
        {"name": "bound", "cascade": members, "max_loss": 0.01},
        {"name": "off", "cascade": members, "max_loss": 0.01, "audit_rate": 0},
        {"name": "once", "vote": members, "audit_rate": 1},
    ]
    rates = {recipe.name: recipe.audit_probability for recipe in registry_of(recipes=named).declared_recipes}
    assert rates == {"free": 0.0, "bound": 0.02, "off": 0.0, "once": 0.0}


async def test_no_audit_while_draining() -> None:
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X")) as gateway:
        gateway.serving_state.leaving = True
        await send_chat(gateway)
        assert (await audit_event(gateway)).value == "skipped_draining"
    assert gateway.experts["generalist"].calls == []
    assert gateway.records[0].audit == "skipped_draining"


async def test_no_audit_of_an_answer_that_the_client_did_not_take() -> None:
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X")) as gateway:
        state, stored = gateway.serving_state, list[Pending]()
        trace = Trace(state.serving, api="chat")  # its outcome stays `aborted`
        trace.attempts.recipe_log = await audited(*members(a=answer("X"), b=answer("X"), large=answer("X")), **CASCADE)
        async with audits.Audits(state, store=stored.append, metrics=Metrics()) as running:
            running.observe(trace)
    assert trace.audit == "skipped_not_delivered"
    assert [pending.event.value for pending in stored] == ["skipped_not_delivered"]


async def test_no_audit_where_the_body_is_large() -> None:
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X")) as gateway:
        await send_chat(gateway, metadata={"padding": "x" * 200_000})
        assert (await audit_event(gateway)).value == "skipped_large_body"
    assert gateway.experts["generalist"].calls == []


async def test_no_audit_by_a_member_that_is_down_and_none_of_coes_own_requests() -> None:
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X")) as gateway:
        await send_chat(gateway, headers={"x-coe-purpose": "score"})
        gateway.experts["generalist"].health = Health(up=False)
        await send_chat(gateway)
        assert (await audit_event(gateway)).value == "skipped_unavailable"
    assert [record.audit for record in gateway.records] == ["", "skipped_unavailable"]
    assert gateway.experts["generalist"].calls == []


async def test_no_audit_of_an_answer_that_cannot_be_compared() -> None:
    """A judge accepts free text, which belongs to no answer class."""
    recipe = {"name": "careful", "cascade": ["coder", "generalist"], "signal": "judge", "judge": "painter"}
    declared = registry_of(recipes=[recipe | {"audit_rate": 1}])
    essay = answer("A story has a beginning, a middle and an end. " * 100)
    async with gateway_of(declared, coder=essay, painter=answer("9"), generalist=essay) as gateway:
        response = await send_chat(gateway)
        assert (response.status, response.headers["x-coe-steps"]) == (200, "1")
        assert (await audit_event(gateway)).value == "skipped_unreadable"
    assert gateway.experts["generalist"].calls == []


async def test_few_audits_run_at_a_time_and_further_ones_are_skipped() -> None:
    last = asyncio.Event()
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X"), generalist=last) as gateway:
        for _ in range(audits.MAX_AUDITS + 1):
            await send_chat(gateway)
        assert (await audit_event(gateway)).value == "skipped_busy"
        assert len(gateway.experts["generalist"].calls) == audits.MAX_AUDITS
        last.set()
        await wait_until(lambda: len(gateway.log.events) == audits.MAX_AUDITS + 1)


async def test_an_audit_that_takes_too_long_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits.Audits.__init__, "__kwdefaults__", {"timeout": 0.3})
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X"), generalist=asyncio.Event()) as gateway:
        await send_chat(gateway)
        event = await audit_event(gateway)
    assert event.value == "failed"
    assert event.audit is not None
    assert [call.outcome for call in event.audit.calls] == ["cancelled"]
    assert gateway.experts["generalist"].cancelled


async def test_the_end_of_the_process_cancels_audits_and_says_so() -> None:
    async with gateway_of(registry(), coder=answer("X"), painter=answer("X"), generalist=asyncio.Event()) as gateway:
        await send_chat(gateway)
        await wait_until(lambda: gateway.experts["generalist"].calls)
    assert gateway.experts["generalist"].cancelled
    assert [event.value for event in gateway.log.events] == ["cancelled"]


async def test_feedback_of_kind_audit_is_not_accepted_from_clients() -> None:
    async with gateway_of(registry(0), coder=answer("X"), painter=answer("X")) as gateway:
        request_id = (await send_chat(gateway)).headers["x-request-id"]
        for fields in ({"audit": "agreed"}, {"kind": "audit", "value": "agreed"}):
            body = orjson.dumps({"request_id": request_id, **fields})
            assert (await gateway.post("/v1/feedback", body)).status == 400
    assert gateway.log.events == []
