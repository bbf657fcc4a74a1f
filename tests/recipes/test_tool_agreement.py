"""With `tools: agreement`, members that call the same tools with equal arguments agree."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from coe.core import Call
from coe.recipes.chat_answer import answer_text, called_tools
from coe.usage import RecipeLog
from tests.fakes import ScriptedExpert
from tests.recipes.members import DONE, answer, bytes_of, call_of, calls_of, event, recipe_of


def call(name: str, arguments: str, number: int = 0) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any], finish: str = "tool_calls", **message: Any) -> bytes:
    """A non-streaming answer that calls tools."""
    return answer(None, finish=finish, tool_calls=list(calls), **message)[0]


def form(*calls: dict[str, Any], **message: Any) -> str | None:
    return called_tools(calling(*calls, **message), stream=False)


def test_arguments_are_compared_by_value_and_calls_in_any_order() -> None:
    paris, rome = call("weather", '{"city": "Paris", "days": 2}'), call("weather", '{"city":"Rome"}', 1)
    assert form(paris) == form(call("weather", '{"days":2.0,"city":"Paris"}', 7))
    assert form(paris, rome) == form(rome, paris)
    different = {form(paris), form(rome), form(paris, rome), form(call("forecast", '{"city":"Rome"}'))}
    assert len(different) == 4
    assert None not in different


def test_a_call_without_arguments_has_a_form() -> None:
    assert form(call("now", "")) == form(call("now", "{}")) is not None


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_calls_that_are_cut_off_have_none(finish: str) -> None:
    assert form(call("now", "{}"), finish=finish) is None


@pytest.mark.parametrize(
    "body",
    [
        calling(call("now", '{"a": ')),
        calling(call("now", "7")),
        calling({"function": {"arguments": "{}"}}),
        calling({"function": {"name": "now", "arguments": {"a": 1}}}),
        calling({"id": "x"}),
        answer("text")[0],
        b"[]",
        b"{",
    ],
)
def test_what_is_no_call_has_no_form(body: bytes) -> None:
    assert called_tools(body, stream=False) is None


def test_the_older_form_of_one_function_is_read() -> None:
    old = answer(None, finish="function_call", function_call={"name": "now", "arguments": '{"zone":"UTC"}'})[0]
    assert called_tools(old, stream=False) == form(call("now", '{"zone": "UTC"}'))


def test_pieces_of_a_stream_are_joined_by_their_index() -> None:
    pieces = (
        event(tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}]),
        event(tool_calls=[{"index": 1, "id": "b", "function": {"name": "now", "arguments": ""}}]),
        event(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
        event(tool_calls=[{"index": 0, "function": {"arguments": '"Paris"}'}}]),
        event(finish="tool_calls"),
        DONE,
    )
    expected = form(call("now", "{}"), call("weather", '{"city": "Paris"}', 1))
    assert called_tools(b"".join(pieces), stream=True) == expected is not None
    assert called_tools(b"".join((*pieces[:4], event(finish="length"), DONE)), stream=True) is None


def test_an_answer_that_calls_a_tool_has_no_text() -> None:
    assert answer_text(calling(call("now", "{}"), content="Let me see."), stream=False) is None


def offering(asked: Call) -> Call:
    """The request with a tool."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    return replace(asked, fields={**asked.fields, "tools": [tool]})


@pytest.mark.anyio
async def test_calls_of_tools_that_the_request_did_not_offer_are_no_answer() -> None:
    invented = calling(call("weather", "{}"))
    members = ScriptedExpert("a", (invented,)), ScriptedExpert("b", (invented,)), ScriptedExpert("c", answer("X"))
    log = RecipeLog()
    reply = await recipe_of(*members, vote=["a", "b", "c"], ask="until_agreed", tools="agreement").stream(
        call_of(log=log)
    )
    assert await bytes_of(reply) == answer("X")[0]
    assert [outcome for _, _, outcome, _ in calls_of(log)] == ["unreadable", "unreadable", "answered"]


@pytest.mark.anyio
@pytest.mark.parametrize(("second", "asked"), [('{"city":  "Paris"}', 2), ('{"city": "Rome"}', 3)])
async def test_the_third_member_is_called_where_two_call_differently(second: str, asked: int) -> None:
    first = calling(call("weather", '{"city":"Paris"}'))
    members = (
        ScriptedExpert("a", (first,)),
        ScriptedExpert("b", (calling(call("weather", second, 1)),)),
        ScriptedExpert("c", (calling(call("weather", '{"city":"Paris"}', 2)),)),
    )
    log = RecipeLog()
    recipe = recipe_of(*members, vote=["a", "b", "c"], ask="until_agreed", tools="agreement")
    reply = await recipe.stream(offering(call_of(log=log)))
    body = orjson.loads(await bytes_of(reply))
    assert body == orjson.loads(first)
    assert [name for name, *_ in calls_of(log)] == ["a", "b", "c"][:asked]
