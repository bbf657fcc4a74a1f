"""A record as JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.errors import StoreError
from coe.records.codec import RECORD
from coe.records.record import RecipeCall, RoutingRecord
from tests.records.samples import record

encode, decode = RECORD.encode, RECORD.decode
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**53)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    float: NUMBER,
    int: COUNT,
    bool: st.booleans(),
    bytes: st.binary(),
    tuple[str, ...]: st.lists(TEXT).map(tuple),
    tuple[float, ...]: st.lists(NUMBER | st.just(-math.inf)).map(tuple),
    tuple[float, float]: st.tuples(NUMBER, NUMBER),
    Mapping[str, float]: st.dictionaries(TEXT, NUMBER),
}


def hints_of(declared: type) -> dict[str, Any]:
    return {field.name: get_type_hints(declared)[field.name] for field in fields(declared)}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of that type, or of each part of a union."""
    if hint in BY_TYPE:
        return BY_TYPE[hint]
    return st.one_of(*(st.none() if one is NoneType else BY_TYPE[one] for one in get_args(hint)))


CALLS = st.builds(RecipeCall, **{name: values(hint) for name, hint in hints_of(RecipeCall).items()})
BY_TYPE[tuple[RecipeCall, ...]] = st.lists(CALLS, max_size=3).map(tuple)
RECORDS = st.builds(
    RoutingRecord, **{name: values(hint) for name, hint in hints_of(RoutingRecord).items()} | {"schema": st.just(1)}
)


@given(RECORDS)
def test_any_record_survives_the_way_to_json_and_back(one: RoutingRecord) -> None:
    line = encode(one)
    assert decode(line) == one
    assert b"\n" not in line


def test_a_stored_record_leaves_out_optional_fields_with_their_defaults() -> None:
    required = {field.name for field in fields(RoutingRecord) if field.default is MISSING}
    given = {"input_tokens", "output_tokens", "session"}
    assert orjson.loads(encode(record(session="s"))).keys() == required | given


def test_defaults_stay_as_they_are_because_stored_records_leave_them_out() -> None:
    defaults = {field.name: field.default for field in fields(RoutingRecord) if field.default is not MISSING}
    others = {name: value for name, value in defaults.items() if value not in (None, "", 0, ())}
    assert others == {"in_distribution": 1.0, "api": "chat", "retrieval": "none", "schema": 1}


def test_keys_this_code_does_not_know_are_left_out() -> None:
    line = orjson.dumps(orjson.loads(encode(record())) | {"mood": "good"})
    assert decode(line) == record()


def test_a_newer_schema_is_refused_with_the_remedy() -> None:
    with pytest.raises(StoreError, match=r"newer schema.*upgrade"):
        decode(encode(record(schema=2)))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"schema": "x"}',
        b'{"schema": 1}',
        encode(record()).replace(b'["small","large"]', b"5"),
        encode(record()).replace(b'"confidence":0.75', b'"confidence":"high"'),
        encode(record()).replace(b'"confidence":0.75', b'"confidence":null'),
        encode(record()).replace(b'"stream":', b'"embedding":"*","stream":'),
        encode(record()).replace(b'"stream":', b'"exploration":[1],"stream":'),
        b"\xff\xfe",
    ],
)
def test_a_damaged_line_is_refused_as_such(line: bytes) -> None:
    with pytest.raises(StoreError, match="damaged"):
        decode(line)


def test_text_that_json_cannot_hold_is_refused_by_its_request_id() -> None:
    with pytest.raises(StoreError, match="request-000007"):
        encode(record(7, prompt="half a pair: \ud800"))
