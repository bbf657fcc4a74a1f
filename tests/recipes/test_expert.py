"""`RecipeExpert` over fake members: steps, comparison, failures, bounds and cancellation."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.core import Health
from coe.errors import ExpertRejected, ExpertTimeout, ExpertUnavailable, InvalidRequest
from coe.recipes import calls as recipe_calls
from coe.recipes.policy import RecipePolicy
from coe.usage import RecipeLog
from tests.recipes.members import (
    CATEGORIES,
    ESSAY,
    answer,
    bytes_of,
    call_of,
    calls_of,
    event,
    members,
    next_chunk,
    recipe_of,
    stream,
    unavailable,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio
CASCADE = {"cascade": [["a", "b"], "large"]}


async def test_two_members_that_agree_save_the_next_step() -> None:
    a, b, large = members(a=answer("The answer is X"), b=answer("X"), large=answer("Y"))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log))
    assert await bytes_of(reply) == answer("The answer is X")[0]
    assert large.calls == []
    assert calls_of(log) == [("a", 0, "answered", True), ("b", 0, "answered", False)]
    assert [call.answer_class for call in log.calls] == [0, 0]
    assert log.calls[0].confidence == log.calls[1].confidence == pytest.approx(0.88, abs=0.01)
    assert (log.recipe, log.stop, log.steps) == ("careful", "accepted", 1)


async def test_where_they_disagree_the_next_step_decides() -> None:
    a, b, large = members(a=answer("X"), b=answer("Y"), large=answer("The answer is Y"))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log))
    assert await bytes_of(reply) == answer("Y")[0]
    assert calls_of(log) == [
        ("a", 0, "answered", False),
        ("b", 0, "answered", True),
        ("large", 1, "answered", False),
    ]
    assert [call.answer_class for call in log.calls] == [0, 1, 1]
    assert (log.stop, log.steps) == ("last_step", 2)


async def test_a_vote_until_agreed_calls_one_after_another() -> None:
    a, b, c = members(a=answer("X"), b=answer("X"), c=answer("Y"))
    log = RecipeLog()
    await bytes_of(await recipe_of(a, b, c, vote=["a", "b", "c"], ask="until_agreed").stream(call_of(log=log)))
    assert (len(a.calls), len(b.calls), len(c.calls)) == (1, 1, 0)
    assert (log.stop, log.steps) == ("accepted", 2)


async def test_a_cascade_of_single_members_stops_at_the_first_final_answer() -> None:
    a, b, c = members(a=answer(ESSAY), b=answer("X"), c=answer("Y"))
    log = RecipeLog()
    reply = await recipe_of(a, b, c, cascade=["a", "b", "c"]).stream(call_of(log=log))
    assert await bytes_of(reply) == answer("X")[0]
    assert calls_of(log) == [("a", 0, "unreadable", False), ("b", 1, "answered", True)]


@pytest.mark.parametrize(
    "script",
    [
        answer(""),
        answer(None),
        answer("X", finish="length"),
        answer("X", refusal="no"),
        answer("X", tool_calls=[{}]),
        (b'{"choices":[]}',),
        (b"[]",),
    ],
)
async def test_an_answer_that_is_empty_cut_off_refused_or_malformed_cannot_be_compared(script: object) -> None:
    a, b, large = members(a=script, b=answer("X"), large=answer("X"))
    log = RecipeLog()
    await bytes_of(await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log)))
    assert log.calls[0].outcome == "unreadable"
    assert log.calls[0].answer_class is None
    assert len(large.calls) == 1


@pytest.mark.parametrize("form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}])
async def test_if_the_request_demands_json_only_json_is_compared(form: dict[str, Any]) -> None:
    a, b, large = members(a=answer("X"), b=answer("X"), large=answer(' {"x": 1}'))
    reply = await recipe_of(a, b, large, **CASCADE).stream(
        replace(call_of(), fields={"messages": [], "response_format": form})
    )
    assert await bytes_of(reply) == large.script[0]


async def test_without_any_comparable_answer_the_latest_step_answers() -> None:
    a, b, large = members(a=answer(ESSAY), b=answer(ESSAY), large=answer(f"{ESSAY} seven"))
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of())
    assert await bytes_of(reply) == answer(f"{ESSAY} seven")[0]


async def test_if_the_last_step_is_unavailable_the_held_answer_goes_out_unverified() -> None:
    a, b, large = members(a=answer("X"), b=answer("Y"), large=unavailable("large"))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log))
    assert await bytes_of(reply) == answer("X")[0]
    assert calls_of(log) == [("a", 0, "unverified", True), ("b", 0, "answered", False), ("large", 1, "error", False)]
    assert log.stop == "unavailable"


@pytest.mark.parametrize(
    "error",
    [
        ExpertTimeout("too slow", expert="large"),
        ExpertRejected("context too long", expert="large", status=400),
        InvalidRequest("nested too deeply"),
    ],
)
async def test_if_no_member_answers_the_last_error_is_raised_as_of_one_expert(error: Exception) -> None:
    log = RecipeLog()
    recipe = recipe_of(*members(a=unavailable("a"), b=unavailable("b"), large=error), **CASCADE)
    with pytest.raises(type(error)) as raised:
        await recipe.stream(call_of(log=log))
    assert raised.value is error
    assert getattr(error, "expert", "careful") == "careful"
    assert log.stop == "failed"


async def test_a_defect_of_a_member_is_not_hidden() -> None:
    a, b, large = members(a=ZeroDivisionError("defect"), b=answer("X"), large=answer("X"))
    with pytest.raises(ZeroDivisionError):
        await recipe_of(a, b, large, **CASCADE).stream(call_of())


async def test_usage_is_the_sum_with_a_part_for_each_call() -> None:
    reply = await recipe_of(*members(a=answer("X"), b=answer("Y"), large=unavailable("large")), **CASCADE).stream(
        call_of()
    )
    await bytes_of(reply)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (6, 10)
    assert [name for name, _ in reply.usage.parts] == ["a", "b"]


async def test_a_retry_of_the_recipe_makes_no_more_calls_than_allowed() -> None:
    log = RecipeLog()
    recipe = recipe_of(*members(a=unavailable("a"), b=unavailable("b"), large=unavailable("large")), **CASCADE)
    with pytest.raises(ExpertUnavailable):
        await recipe.stream(call_of(log=log))
    with pytest.raises(ExpertUnavailable, match="recipe 'careful' has made all 4 calls it may") as raised:
        await recipe.stream(call_of(log=log))
    assert not raised.value.request_sent
    assert len(log.calls) == 3


async def test_answers_are_weighed_by_the_posterior_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    judge = RecipePolicy.evaluate

    def observe(policy: RecipePolicy, number: int, classes: Any, tokens: Any, posterior: Any, grades: Any) -> Any:
        seen.append((posterior.tolist(), tokens.tolist()))
        return judge(policy, number, classes, tokens, posterior, grades)

    monkeypatch.setattr(RecipePolicy, "evaluate", observe)
    recipe = recipe_of(*members(a=answer("X"), b=answer("Y")), vote=["a", "b"])
    await bytes_of(await recipe.stream(call_of()))
    posterior = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    await bytes_of(await recipe.stream(replace(call_of(), posterior=posterior)))
    assert seen == [([[1 / CATEGORIES] * CATEGORIES], [[5.0, 5.0]]), ([[0.25, 0.5, 0.25]], [[5.0, 5.0]])]


# ----------------------------------------------------------------------------------------------- bounds and streams


async def test_an_accepted_stream_is_one_members_events_unchanged() -> None:
    a, b, large = members(a=stream("The answer is", " X"), b=stream("X"), large=stream("Y"))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(stream=True, log=log))
    assert reply.media_type == "text/event-stream"
    assert await bytes_of(reply) == b"".join(stream("The answer is", " X"))
    assert log.stop == "accepted"
    assert all(one.closed for member in (a, b) for one in member.replies)


async def test_a_stream_that_is_cut_off_or_calls_a_tool_cannot_be_compared() -> None:
    tool = (event(tool_calls=[{}]), event(finish="tool_calls"))
    a, b, large = members(a=stream("X", finish="length"), b=tool, large=stream("Z"))
    log = RecipeLog()
    await bytes_of(await recipe_of(a, b, large, **CASCADE).stream(call_of(stream=True, log=log)))
    assert [call.outcome for call in log.calls] == ["unreadable", "unreadable", "answered"]


async def test_a_stream_is_held_for_a_limited_time_and_then_relayed_live() -> None:
    go = asyncio.Event()
    a, b, large = members(a=stream("it", go, "is", "X"), b=go, large=stream("Y"))
    log = RecipeLog()
    recipe = recipe_of(a, b, large, limits={"max_stream_hold": 0.05}, **CASCADE)
    reply = await recipe.stream(call_of(stream=True, log=log))
    chunks = reply.chunks()
    assert await next_chunk(chunks) == event("it")
    assert calls_of(log) == [("a", 0, "unverified", True), ("b", 0, "cancelled", False)]
    assert log.stop == "stream_hold"
    await wait_until(lambda: b.cancelled)
    go.set()
    assert b"".join([chunk async for chunk in chunks]) == b"".join((event("is"), event("X"), *stream()))
    await reply.aclose()
    assert a.replies[0].closed
    assert log.calls[0].outcome == "unverified"
    assert large.calls == []


async def test_when_the_hold_ends_a_complete_answer_goes_before_one_that_has_not_begun() -> None:
    go = asyncio.Event()
    a, b, large = members(a=stream("X"), b=stream("Y"), large=go)
    log = RecipeLog()
    recipe = recipe_of(a, b, large, limits={"max_stream_hold": 0.05}, **CASCADE)
    reply = await recipe.stream(call_of(stream=True, log=log))
    assert await bytes_of(reply) == b"".join(stream("X"))
    assert (log.stop, log.calls[2].outcome, large.cancelled) == ("stream_hold", "cancelled", True)


async def test_a_complete_free_text_goes_before_a_stream_of_its_step_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recipe_calls, "MAX_HELD_BYTES", 2000)
    go = asyncio.Event()
    a, b = members(a=stream("so", go, "x" * 3000), b=stream(ESSAY))
    log = RecipeLog()
    recipe = recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 60})
    call = asyncio.create_task(recipe.stream(call_of(stream=True, log=log)))
    await wait_until(lambda: [one.outcome for one in log.calls] == ["cancelled", "unreadable"])
    go.set()
    reply = await call
    assert (log.stop, [one.accepted for one in log.calls]) == ("held_bytes", [False, True])
    assert await bytes_of(reply) == b"".join(stream(ESSAY))


async def test_a_stream_that_breaks_after_it_is_relayed_raises_its_error() -> None:
    go = asyncio.Event()
    a, b = members(a=stream("it", go, unavailable("a")), b=go)
    log = RecipeLog()
    reply = await recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 0.01}).stream(
        call_of(stream=True, log=log)
    )
    chunks = reply.chunks()
    assert await next_chunk(chunks) == event("it")
    go.set()
    with pytest.raises(ExpertUnavailable):
        await anext(chunks)
    await reply.aclose()
    assert (log.calls[0].outcome, log.calls[0].accepted) == ("error", True)


async def test_near_the_deadline_the_held_answer_goes_out_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_calls, "DEADLINE_MARGIN_SHARE", 0.8)
    monkeypatch.setattr(recipe_calls, "DEADLINE_MARGIN_SECONDS", 2.0)
    for is_stream in (False, True):
        script = stream if is_stream else answer
        a, b, large = members(a=script("X"), b=script("Y"), large=asyncio.Event())
        log = RecipeLog()
        loop = asyncio.get_running_loop()
        began = loop.time()
        recipe = recipe_of(a, b, large, limits={"max_stream_hold": 60}, **CASCADE)
        reply = await recipe.stream(call_of(stream=is_stream, log=log, seconds=2.5))
        assert loop.time() - began < 2.5
        assert await bytes_of(reply) == b"".join(script("X"))
        assert (log.stop, large.cancelled) == ("deadline", True)


async def test_a_stream_beyond_the_memory_limit_is_relayed_and_read_no_faster_than_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recipe_calls, "MAX_HELD_BYTES", 1000)
    monkeypatch.setattr("coe.recipes.draft.MAX_RELAY_BYTES", 500)
    texts = ["x" * 100] * 50
    a, b = members(a=stream(*texts), b=asyncio.Event())
    log = RecipeLog()
    reply = await recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 60}).stream(call_of(stream=True, log=log))
    assert log.stop == "held_bytes"
    assert reply._draft._size < 2000  # type: ignore[attr-defined]
    assert await bytes_of(reply) == b"".join(stream(*texts))


# ----------------------------------------------------------------------------------------------- cancellation, health


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_cancels_and_closes_every_call(is_stream: bool) -> None:
    never, tasks = asyncio.Event(), asyncio.all_tasks()
    a, b, large = members(a=never, b=stream("it", never), large=never)
    log = RecipeLog()
    recipe = recipe_of(a, b, large, limits={"max_stream_hold": 60}, **CASCADE)
    call = asyncio.create_task(recipe.stream(call_of(stream=is_stream, log=log)))
    await wait_until(lambda: a.calls and b.replies)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert a.cancelled
    assert b.replies[0].closed
    assert log.stop == "cancelled"
    assert [one.outcome for one in log.calls] == ["cancelled", "cancelled"]
    assert asyncio.all_tasks() == tasks


async def test_a_client_that_leaves_a_live_stream_closes_it() -> None:
    tasks = asyncio.all_tasks()
    a, b = members(a=stream("it", asyncio.Event()), b=asyncio.Event())
    reply = await recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 0}).stream(call_of(stream=True))
    chunks = reply.chunks()
    assert await next_chunk(chunks) == event("it")
    await chunks.aclose()
    await reply.aclose()
    assert a.replies[0].closed
    assert b.cancelled
    assert asyncio.all_tasks() == tasks


async def test_health_is_that_of_the_first_step() -> None:
    a, b, large = members(a=answer("X"), b=answer("X"), large=answer("X"))
    recipe = recipe_of(a, b, large, **CASCADE)
    a.health, b.health, large.health = Health(load=0.2), Health(load=0.7), Health(up=False, cause="timeout")
    assert recipe.health == Health(load=0.7)
    a.health = Health(up=False, cause="timeout")
    assert recipe.health.up
    b.health = Health(up=False, cause="overloaded")
    assert recipe.health == Health(up=False, cause="timeout")


async def test_a_live_stream_does_not_keep_the_request_in_memory() -> None:
    class Fields(dict[str, object]):
        """Fields that can be observed."""

    fields = Fields(messages=[])
    a, b = members(a=stream("it", asyncio.Event()), b=asyncio.Event())
    observed = weakref.ref(fields)
    recipe = recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 0})
    reply = await recipe.stream(replace(call_of(stream=True), fields=fields))
    chunks = reply.chunks()
    await next_chunk(chunks)
    await wait_until(lambda: b.cancelled)
    del fields
    for member in (a, b):
        member.calls.clear()
    assert observed() is None
    await chunks.aclose()
    await reply.aclose()
