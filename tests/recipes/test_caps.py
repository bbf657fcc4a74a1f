"""Caps on the tokens of a recipe's members: the request that they get, cut-off answers, and the costs in replay."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.core import Call, Reply
from coe.errors import ExpertRejected, ExpertUnavailable
from coe.recipes.agreement import NO_ANSWER
from coe.recipes.calls import capped_fields
from coe.recipes.chat_answer import finish_reason
from coe.recipes.expert import RecipeExpert
from coe.recipes.factory import build_recipes
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import RecipeFit, replayed
from coe.recipes.policy_file import ArmPolicies
from coe.registry import Policy
from coe.usage import RecipeLog
from tests.fakes import ScriptedExpert, registry_of
from tests.recipes.members import (
    CATEGORIES,
    DONE,
    NewerLimitExpert,
    answer,
    bytes_of,
    call_of,
    calls_of,
    event,
    final_answer,
    recipe_of,
    stream,
    translated,
)
from tests.recipes.recorded import recorded_answers

CASCADE: dict[str, Any] = {"cascade": [["a", "b"], "large"], "max_tokens": {"large": 40}}
COUNTS = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
CUT = answer("it may be", finish="length")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"max_tokens": 40}),
        ({"max_tokens": 100}, {"max_tokens": 40}),
        ({"max_completion_tokens": 100}, {"max_completion_tokens": 40}),
        ({"max_tokens": None, "max_completion_tokens": 41}, {"max_tokens": None, "max_completion_tokens": 40}),
        ({"max_output_tokens": 100}, {"max_output_tokens": 100, "max_tokens": 40}),
        ({"max_tokens": 40}, None),
        ({"max_tokens": 100, "max_completion_tokens": 30}, None),
    ],
)
def test_the_request_has_the_lower_limit_of_client_and_recipe(
    fields: Mapping[str, Any], expected: Mapping[str, Any] | None
) -> None:
    assert capped_fields(fields, 40) == (fields if expected is None else expected)
    assert (capped_fields(fields, 40) is fields) is (expected is None)
    assert capped_fields(fields, math.inf) is fields


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_that_the_cap_cuts_off_is_not_returned_and_counts_in_the_usage(*, streams: bool) -> None:
    script = {"a": "X", "b": "Y", "large": "it may be"}
    finish = {"large": "length"}
    form = stream if streams else answer
    a, b, large = (ScriptedExpert(name, form(text, finish=finish.get(name, "stop"))) for name, text in script.items())
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log, stream=streams))
    assert await bytes_of(reply) == b"".join(form("X"))
    assert calls_of(log) == [("a", 0, "answered", True), ("b", 0, "answered", False), ("large", 1, "cut_off", False)]
    assert log.stop == "last_step"
    assert ["max_tokens" in member.calls[0].fields for member in (a, b, large)] == [False, False, True]
    if not streams:
        assert reply.usage.output_tokens == 15


@pytest.mark.anyio
async def test_the_limit_of_the_client_is_no_cut_off_by_the_recipe() -> None:
    a, b, large = (ScriptedExpert(name, answer(text)) for name, text in (("a", "X"), ("b", "Y"), ("large", "Z")))
    large.script = answer("so it", finish="length")
    log = RecipeLog()
    call = call_of(log=log)
    await bytes_of(
        await recipe_of(a, b, large, **CASCADE).stream(replace(call, fields={**call.fields, "max_tokens": 9}))
    )
    assert large.calls[0].fields["max_tokens"] == 9
    assert calls_of(log)[2] == ("large", 1, "unreadable", False)


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [{}, {"parameters": {"max_completion_tokens": 4000}}])
async def test_a_member_gets_its_cap_under_the_name_of_the_limit_that_it_accepts(declared: dict[str, Any]) -> None:
    a, b, large = ScriptedExpert("a", answer("X")), ScriptedExpert("b", answer("Y")), NewerLimitExpert("large", CUT)
    recipe = recipe_of(a, b, translated(large, **declared), **CASCADE)
    for _ in range(2):
        log = RecipeLog()
        assert await bytes_of(await recipe.stream(call_of(log=log))) == answer("X")[0]
        assert calls_of(log)[2] == ("large", 1, "cut_off", False)
    names = [[name for name in ("max_tokens", "max_completion_tokens") if name in one.fields] for one in large.calls]
    refused = [] if declared else [["max_tokens"]]
    assert names == [*refused, ["max_completion_tokens"], ["max_completion_tokens"]]


@pytest.mark.anyio
async def test_the_limit_of_a_client_keeps_its_name_at_a_server_that_refuses_it() -> None:
    large = NewerLimitExpert("large", answer("X"))
    call = call_of()
    with pytest.raises(ExpertRejected):
        await translated(large).stream(replace(call, fields={**call.fields, "max_tokens": 9}))
    assert len(large.calls) == 1


@pytest.mark.anyio
async def test_without_an_answer_to_return_instead_the_last_step_has_no_cap() -> None:
    essay = answer("one two three four five six")
    a, b, large = (ScriptedExpert(name, essay) for name in ("a", "b", "large"))
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of())
    assert await bytes_of(reply) == essay[0]
    assert "max_tokens" not in large.calls[0].fields


@pytest.mark.anyio
async def test_if_the_first_step_is_cut_off_the_next_one_is_called_and_a_recipe_without_an_answer_fails() -> None:
    declared: dict[str, Any] = {"cascade": ["large", "a"], "max_tokens": {"large": 40}}
    large, a = ScriptedExpert("large", CUT), ScriptedExpert("a", answer("X"))
    log = RecipeLog()
    assert await bytes_of(await recipe_of(large, a, **declared).stream(call_of(log=log))) == answer("X")[0]
    assert calls_of(log) == [("large", 0, "cut_off", False), ("a", 1, "answered", True)]
    broken = ScriptedExpert("a", ExpertUnavailable("expert 'a' is down", expert="a"))
    with pytest.raises(ExpertUnavailable):
        await recipe_of(large, broken, **declared).stream(call_of())


@pytest.mark.anyio
async def test_a_stream_that_may_be_cut_off_is_not_released_when_its_time_is_over() -> None:
    a, b = (ScriptedExpert(name, stream(text)) for name, text in (("a", "X"), ("b", "Y")))
    large = ScriptedExpert("large", (event("Y"), asyncio.Event()))
    log = RecipeLog()
    recipe = recipe_of(a, b, large, limits={"max_stream_hold": 0.05}, **CASCADE)
    assert await bytes_of(await recipe.stream(call_of(log=log, stream=True))) == b"".join(stream("X"))
    assert log.stop == "stream_hold"


@pytest.mark.anyio
async def test_in_a_stream_the_first_step_has_no_caps_so_that_its_time_and_bytes_stay_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declared: dict[str, Any] = {"cascade": ["large", "a"], "max_tokens": {"large": 40}}
    large, a = ScriptedExpert("large", (event("Y"), asyncio.Event())), ScriptedExpert("a", stream("X"))
    recipe = recipe_of(large, a, limits={"max_stream_hold": 0.05}, **declared)
    log = RecipeLog()
    reply = await recipe.stream(call_of(log=log, stream=True))
    assert await anext(reply.chunks()) == event("Y")
    await reply.aclose()
    assert log.stop == "stream_hold"
    monkeypatch.setattr("coe.recipes.calls.MAX_HELD_BYTES", 400)
    large.script, log = stream(*["word "] * 30), RecipeLog()
    assert await bytes_of(await recipe_of(large, a, **declared).stream(call_of(log=log, stream=True))) == b"".join(
        large.script
    )
    assert log.stop == "held_bytes"
    assert not any("max_tokens" in one.fields for one in large.calls)


@pytest.mark.anyio
async def test_a_capped_stream_beside_an_answer_ends_when_too_many_bytes_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coe.recipes.calls.MAX_HELD_BYTES", 2000)
    a, b = (ScriptedExpert(name, stream(text)) for name, text in (("a", "X"), ("b", "Y")))
    large = ScriptedExpert("large", stream(*["word "] * 50))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log, stream=True))
    assert await bytes_of(reply) == b"".join(stream("X"))
    assert (log.stop, "max_tokens" in large.calls[0].fields) == ("held_bytes", True)


HALF_CALL = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}]
WHOLE_CALL = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("finish", "message", "cap", "cut"),
    [
        ("max_tokens", {}, 9, True),
        ("model_length", {}, 9, True),
        (None, {}, 5, True),  # a server that gives no reason, and the answer has as many tokens as the cap
        (None, {}, 9, False),
        ("stop", {}, 5, False),
        ("tool_calls", {"tool_calls": HALF_CALL}, 5, True),
        ("stop", {"tool_calls": HALF_CALL}, 5, True),
        ("tool_calls", {"tool_calls": WHOLE_CALL}, 5, False),
    ],
)
async def test_an_answer_is_cut_off_by_its_finish_reason_or_if_it_is_not_whole_at_the_cap(
    finish: str | None, message: dict[str, Any], cap: int, *, cut: bool, streams: bool
) -> None:
    text = None if message else "Y"
    script = (
        (event(text, **message), event(finish=finish), COUNTS, DONE)
        if streams
        else answer(text, finish=finish, **message)
    )
    large, a = ScriptedExpert("large", script), ScriptedExpert("a", stream("X") if streams else answer("X"))
    recipe = recipe_of(a, large, cascade=["a", "large"], max_tokens={"large": cap}, tools="agreement")
    log = RecipeLog()
    recipe = RecipeExpert(
        recipe.name,
        {"a": a, "large": large},
        policy=recipe.policy.never_stopping(),
        categories=CATEGORIES,
        final_answer=final_answer,
        limits=Policy(),
    )
    await bytes_of(await recipe.stream(call_of(log=log, stream=streams)))
    assert (log.calls[1].outcome == "cut_off") == cut
    assert log.calls[1].max_tokens == cap


@pytest.mark.anyio
@pytest.mark.parametrize(("cap", "cut"), [(5, True), (9, False)])
async def test_a_plain_answer_too_long_to_parse_is_cut_off_if_it_has_as_many_tokens_as_the_cap(
    monkeypatch: pytest.MonkeyPatch, cap: int, *, cut: bool
) -> None:
    monkeypatch.setattr("coe.recipes.draft.MAX_TEXT_BYTES", 10)
    large, a = ScriptedExpert("large", CUT), ScriptedExpert("a", answer("X"))
    log = RecipeLog()
    await bytes_of(
        await recipe_of(large, a, cascade=["large", "a"], max_tokens={"large": cap}).stream(call_of(log=log))
    )
    assert (log.calls[0].outcome == "cut_off") == cut


def test_the_finish_reason_of_a_long_stream_is_read_from_its_end() -> None:
    """A broken event far from the end would raise, if it were read."""
    body = b"data: {broken\n\n" + event("word") * 1000 + b"".join(stream(finish="length"))
    assert finish_reason(body, stream=True) == "length"


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["reasoning_effort", "thinking"])
async def test_a_request_that_sets_its_reasoning_has_no_caps(name: str) -> None:
    a, b, large = (ScriptedExpert(name, answer(text)) for name, text in (("a", "X"), ("b", "Y"), ("large", "Z")))
    call = call_of()
    await (await recipe_of(a, b, large, **CASCADE).stream(replace(call, fields={**call.fields, name: "high"}))).aclose()
    assert "max_tokens" not in large.calls[0].fields


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 700.0),
        ({"max_tokens": 900}, 700.0),
        ({"thinking": {"type": "enabled", "budget_tokens": 700}}, math.inf),
    ],
)
def test_a_cap_that_the_declared_thinking_of_its_member_does_not_allow_is_left_out(
    parameters: dict[str, Any], expected: float
) -> None:
    member: dict[str, Any] = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    declared = registry_of(
        experts=[{"name": "a", **member}, {"name": "large", **member, "parameters": parameters}],
        recipes=[{"name": "careful", "cascade": ["a", "large"], "max_tokens": {"large": 700}}],
    )
    experts = {"a": ScriptedExpert("a"), "large": ScriptedExpert("large")}
    arms = build_recipes(declared, experts, categories=CATEGORIES)
    policy = arms["careful"].policy
    assert policy.caps.tolist() == [math.inf, expected]


class _RecordedExpert:
    """Answers with recorded classes, and obeys max_tokens as a server does."""

    health = ScriptedExpert("any").health

    def __init__(self, name: str, answer_class: int, tokens: int) -> None:
        self.name, self._class, self._tokens = name, answer_class, tokens

    async def stream(self, call: Call) -> Reply:
        limit = call.fields.get("max_tokens", math.inf)
        cut = self._tokens > limit
        text = "one two three four five six" if self._class == NO_ANSWER else f"class-{self._class}"
        form = stream if call.stream else answer
        reply = await ScriptedExpert(self.name, form(text, finish="length" if cut else "stop")).stream(call)
        reply.usage.output_tokens = int(min(self._tokens, limit))
        return reply

    async def aclose(self) -> None: ...


def _uneven(prompts: int = 900) -> Answers:
    """Two cheap experts and a large one whose long answers are rarely right; some answers cannot be read."""
    random = np.random.default_rng(2)
    found = recorded_answers(
        {"a": (0.6, 0.4), "b": (0.5, 0.4), "large": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "large": 9.0}, prompts=prompts
    )
    tokens = np.ceil(random.lognormal(3.5, 1.0, size=found.tokens.shape))
    is_long = tokens[:, 2] > np.quantile(tokens[:, 2], 0.85)
    found.scores[is_long, 2], found.classes[is_long, 2] = 0.0, 7
    found.classes[random.random(found.classes.shape) < 0.25] = NO_ANSWER
    return replace(found, tokens=tokens, costs=tokens * np.array([1.0, 1.0, 9.0]))


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("steps", [[[0, 1], [2]], [[2], [0], [1]], [[0], [2]]])
async def test_members_scores_and_costs_in_service_are_those_of_the_replay(
    steps: list[list[int]], *, streams: bool
) -> None:
    answers = _uneven()
    caps = np.array([40.0, np.inf, 60.0])
    policy, _ = RecipeFit(answers, recipe="careful", steps=steps, caps=caps).policy(2e-4)
    stored = ArmPolicies(("code", "law"), {"careful": policy})
    policy = ArmPolicies.from_json(stored.to_json()).by_arm["careful"]
    few = answers.rows(np.arange(150))
    expected = replayed(policy, few, streams=streams)
    cut = 0
    for row in range(len(few.labels)):
        members: Any = {
            name: _RecordedExpert(name, int(few.classes[row, n]), int(few.tokens[row, n]))
            for n, name in enumerate(few.experts)
        }
        recipe = RecipeExpert(
            "careful", members, policy=policy, categories=2, final_answer=final_answer, limits=Policy()
        )
        log = RecipeLog()
        call = replace(call_of(log=log, stream=streams), posterior=few.posterior[row].astype(np.float32))
        await bytes_of(await recipe.stream(call))
        written = {one.expert: one.usage.output_tokens for one in log.calls if one.usage is not None}
        cost = sum(
            (written[name] or 0) * rate for name, rate in zip(few.experts, (1, 1, 9), strict=True) if name in written
        )
        assert cost == pytest.approx(float(expected.costs(few)[row]))
        returned = next(one.expert for one in log.calls if one.accepted)
        assert few.scores[row, few.experts.index(returned)] == expected.scores[row]
        cut += sum(one.outcome == "cut_off" for one in log.calls)
    assert cut > 5


def test_the_outcome_of_a_fit_with_caps_is_that_of_its_replay() -> None:
    answers = _uneven(3000)
    policy, outcome = RecipeFit(
        answers, recipe="careful", steps=[[0], [2]], caps=np.array([np.inf, np.inf, 80.0])
    ).policy(2e-4)
    found = replayed(policy, answers)
    assert found.scores.mean() == pytest.approx(outcome.scores.mean(), abs=0.02)
    assert found.costs(answers).mean() == pytest.approx(outcome.costs.mean(), rel=0.05)
    assert found.written[found.called].min() < 0.5


def test_input_costs_are_not_saved_by_a_cap() -> None:
    answers = _uneven(100)
    whole = replace(answers, output_costs=answers.costs, costs=answers.costs + 5.0)
    capped = whole.capped(np.full(3, 40.0), np.ones(whole.tokens.shape, dtype=bool))
    assert capped.costs == pytest.approx(np.minimum(answers.tokens, 40.0) * np.array([1.0, 1.0, 9.0]) + 5.0)
