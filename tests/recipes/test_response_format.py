"""An answer counts only if it has the form that the request's response_format demands."""

import json
import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from coe.core import Call
from coe.recipes.response_format import MAX_STEPS, in_demanded_form
from coe.usage import RecipeLog
from tests.call_count import calls_during
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
        {"required": 5},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#"},
        {"$ref": "#/$defs/missing"},
        {"type": "object", "properties": {"a": {"$ref": "#text"}}, "$defs": {"text": {"$anchor": "text"}}},
        {"properties": {"a": {"pattern": "^y"}}},
        {"allOf": [{"$id": "http://inner.example/schema", "$ref": "#/$defs/a"}], "$defs": {"a": False}},
        None,
        [],
    ],
)
def test_any_json_counts_for_a_schema_that_cannot_be_checked(schema: Any) -> None:
    assert reads(demanded(schema), '{"a": "z"}')
    assert not reads(demanded(schema), "z")


def test_a_recursive_schema_is_checked() -> None:
    tree = {"properties": {"children": {"items": {"$ref": "#"}}}, "required": ["name"]}
    assert reads(demanded(tree), '{"name": "a", "children": [{"name": "b"}]}')
    assert not reads(demanded(tree), '{"name": "a", "children": [{"title": "b"}]}')


def chain(keyword: str, levels: int) -> dict[str, Any]:
    """Return a schema of this depth, whose parts are reached by a key `a`."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {keyword: {"a": schema}}
    return schema


def doubled(keyword: str, levels: int, *, last: bool) -> Any:
    schema: Any = last
    for _ in range(levels):
        schema = {keyword: [schema] * 2}
    return schema


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"allOf": [{"pattern": r"\pL{100}0"}] * 3000}, ""),
        (doubled("allOf", 60, last=True), {}),
        (doubled("anyOf", 60, last=False), {}),
        ({"allOf": [{"$ref": "#" + "/a/a" * 100}] * 1000} | chain("a", 100), {}),
        ({"items": {"type": "integer"}}, [1] * 200_000),
        ({"anyOf": [{"items": False}] * 100_000}, [1] * 200_000),
        ({"items": {"enum": [1e300] * 300 + [5]}}, [5] * 10_000),
        ({"additionalProperties": {"minimum": 1}}, {str(number): 1 for number in range(100_000)}),
        (chain("properties", 400), {}),
    ],
)
def test_a_check_takes_a_bounded_number_of_steps(schema: Any, value: Any) -> None:
    read = in_demanded_form(lambda text: text, {"response_format": demanded(schema)})
    text = json.dumps(value)
    assert calls_during(lambda: read(text)) < 20 * MAX_STEPS
    assert reads(demanded(schema), text)


SCALARS = (None, True, False, 0, 1, -1, 1.0, 2.5, "", "a", "ab")


def random_value(draw: random.Random, depth: int = 2) -> Any:
    kind = draw.randrange(6) if depth else 0
    if kind == 4:
        return [random_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 5:
        return {name: random_value(draw, depth - 1) for name in draw.sample("abc", draw.randrange(4))}
    return draw.choice(SCALARS)


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    """Return a schema of the keywords that are checked."""
    if not depth:
        return draw.choice((True, True, False, {}, {"$ref": "#/$defs/d"}))

    def part() -> Any:
        return random_schema(draw, depth - 1)

    arguments: dict[str, Callable[[], Any]] = {
        "type": lambda: draw.choice(("object", "array", "string", "integer", "number", ["null", "boolean", "object"])),
        "enum": lambda: draw.sample(SCALARS, 4),
        "required": lambda: draw.sample("abc", 1),
        "properties": lambda: {name: part() for name in draw.sample("abc", 2)},
        "additionalProperties": part,
        "items": part,
        "prefixItems": lambda: [True],
        "allOf": lambda: [part(), part()],
        "anyOf": lambda: [part(), part()],
        **{name: lambda: draw.randrange(-1, 3) for name in ("minimum", "exclusiveMaximum")},
        **{name: lambda: draw.randrange(3) for name in ("minLength", "maxLength", "minItems", "maxItems")},
    }
    return {name: arguments[name]() for name in draw.sample(sorted(arguments), draw.randrange(4))}


def test_checks_agree_with_a_library() -> None:
    draw = random.Random(1)
    results = set()
    for _ in range(3000):
        schema = {"$defs": {"d": {"type": ["integer", "object"]}}, "allOf": [random_schema(draw)]}
        value = random_value(draw)
        results.add(is_valid := Draft202012Validator(schema).is_valid(value))
        assert reads(demanded(schema), json.dumps(value)) is is_valid, (schema, value)
    assert results == {True, False}


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
