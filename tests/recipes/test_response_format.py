"""An answer counts only if it has the form that the request's response_format demands."""

from typing import Any

import orjson
import pytest

from coe.core import Call
from coe.experts.recipes.response_format import in_demanded_form
from coe.usage import RecipeLog
from tests.fakes import ScriptedExpert
from tests.recipes.members import answer, bytes_of, call_of, calls_of, recipe_of

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def demanded(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def reads(response_format: Any, text: str) -> bool:
    return in_demanded_form(lambda text: text, {"response_format": response_format})(text) is not None


@pytest.mark.parametrize(
    ("response_format", "text", "counts"),
    [
        (None, "B", True),
        ({"type": "text"}, "B", True),
        ({"type": "json_object"}, '{"a": 1}', True),
        ({"type": "json_object"}, "[1]", False),
        ({"type": "json_object"}, "The answer is B", False),
        ({"type": "json_object"}, '```json\n{"a": 1}\n```', False),
        (demanded(PERSON), '{"name": "Ada", "age": 36}', True),
        (demanded(PERSON), '{"name": "Ada", "age": -1}', False),
        (demanded(PERSON), '{"name": "Ada"}', False),
        (demanded(PERSON), '{"name": "Ada", "age": 36, "x": 1}', False),
        (demanded(PERSON), '{"name": "Ada", "age": 36', False),
    ],
)
def test_an_answer_counts_if_it_has_the_demanded_form(response_format: Any, text: str, counts: bool) -> None:
    assert reads(response_format, text) is counts


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}},
        {"properties": {"a": {"pattern": "(?=x)y"}}},
        None,
        [],
    ],
)
def test_any_json_counts_for_a_schema_that_cannot_be_checked(schema: Any) -> None:
    assert reads(demanded(schema), '{"a": "z"}')
    assert not reads(demanded(schema), "z")


def doubling(name: str, extra: dict[str, Any]) -> dict[str, Any]:
    """A schema each of whose 60 parts refers twice to the next one: checking it takes 2^60 steps."""
    parts = {
        name.format(depth).replace("%61", "a"): {"allOf": [{"$ref": f"#/$defs/{name.format(depth + 1)}"}] * 2, **extra}
        for depth in range(60)
    }
    last = {name.format(60).replace("%61", "a"): {"type": "object"}}
    return {"$ref": f"#/$defs/{name.format(0)}", "$defs": {**parts, **last}}


@pytest.mark.parametrize("name", ["d{}", "%61{}"])
def test_a_schema_that_doubles_at_each_reference_is_not_checked(name: str) -> None:
    assert reads(demanded(doubling(name, {})), "{}")


def test_references_below_a_part_with_an_id_of_its_own_are_not_followed() -> None:
    """There `#/$defs` is another place, with the doubling parts, than at the root."""
    harmless: dict[str, Any] = {f"d{depth}": {} for depth in range(61)}
    inner = {"$id": "http://inner.example/schema", **doubling("d{}", {})}
    assert reads(demanded({"allOf": [inner], "$defs": harmless}), "{}")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"enum": [f"v{number}" for number in range(6000)]}, '"other"'),
        ({"anyOf": [{"const": number} for number in range(2000)]}, f'"{"x" * 10_000}"'),
    ],
)
def test_a_check_that_takes_long_is_left_out(schema: dict[str, Any], text: str) -> None:
    assert reads(demanded(schema), text)
    assert not reads(demanded({"enum": ["v1"]}), '"other"')


def test_a_schema_as_deep_as_json_allows_is_not_checked() -> None:
    schema: dict[str, Any] = {}
    for _ in range(1000):
        schema = {"properties": {"a": schema}}
    assert reads(demanded(schema), "{}")


@pytest.mark.anyio
async def test_a_cascade_goes_on_when_the_first_answer_has_another_form() -> None:
    right = '{"name": "Ada", "age": 36}'
    cheap = ScriptedExpert("cheap", answer('{"name": "Ada"}'))
    strong = ScriptedExpert("strong", answer(right))
    log = RecipeLog()
    call = call_of(log=log)
    call = Call(
        {"messages": [], "response_format": demanded(PERSON)}, False, 10.0, 10.0, deadline=call.deadline, recipe_log=log
    )
    reply = await recipe_of(cheap, strong, cascade=["cheap", "strong"]).stream(call)
    assert orjson.loads(await bytes_of(reply))["choices"][0]["message"]["content"] == right
    assert calls_of(log) == [("cheap", 0, "unreadable", False), ("strong", 1, "answered", True)]
