"""`RecipeExpert` over fake members: steps, comparison, failures, bounds and cancellation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from coe.errors import ExpertUnavailable
from coe.recipes import calls as recipe_calls
from coe.usage import RecipeLog
from tests.recipes.members import (
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


async def test_if_the_last_step_is_unavailable_the_held_answer_goes_out_unverified() -> None:
    a, b, large = members(a=answer("X"), b=answer("Y"), large=unavailable("large"))
    log = RecipeLog()
    reply = await recipe_of(a, b, large, **CASCADE).stream(call_of(log=log))
    assert await bytes_of(reply) == answer("X")[0]
    assert calls_of(log) == [("a", 0, "unverified", True), ("b", 0, "answered", False), ("large", 1, "error", False)]
    assert log.stop == "unavailable"


async def test_a_retry_of_the_recipe_makes_no_more_calls_than_allowed() -> None:
    log = RecipeLog()
    recipe = recipe_of(*members(a=unavailable("a"), b=unavailable("b"), large=unavailable("large")), **CASCADE)
    with pytest.raises(ExpertUnavailable):
        await recipe.stream(call_of(log=log))
    with pytest.raises(ExpertUnavailable, match="has no 3 of the 4 calls left that it may make") as raised:
        await recipe.stream(call_of(log=log))
    assert not raised.value.request_sent
    assert len(log.calls) == 3


# ----------------------------------------------------------------------------------------------- bounds and streams


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


async def test_a_stream_that_is_relayed_is_read_no_faster_than_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.recipes.calls.MAX_RELAY_BYTES", 500)
    go, texts = asyncio.Event(), ["x" * 100] * 50
    a, b = members(a=stream("it", go, *texts), b=asyncio.Event())
    recipe = recipe_of(a, b, vote=["a", "b"], limits={"max_stream_hold": 0.05})
    reply = await recipe.stream(call_of(stream=True))
    chunks = reply.chunks()
    assert await next_chunk(chunks) == event("it")
    go.set()
    body = await next_chunk(chunks)
    for _ in range(100):
        await asyncio.sleep(0)
    assert reply._draft._size < 2000  # type: ignore[attr-defined]
    assert body + b"".join([chunk async for chunk in chunks]) == b"".join(stream(*texts))
    await reply.aclose()


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
