"""A record as JSON and back."""

from __future__ import annotations

from dataclasses import MISSING, fields

import orjson
import pytest

from coe.errors import StoreError
from coe.records.record import RECORD, RoutingRecord
from tests.records.samples import record

encode, decode = RECORD.encode, RECORD.decode


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
        b"{",
        b"null",
        b'{"schema": 1}',
        encode(record()).replace(b'["small","large"]', b"5"),
        encode(record()).replace(b'"confidence":0.75', b'"confidence":null'),
        encode(record()).replace(b'"stream":', b'"propensities":1,"stream":'),
        b"\xff\xfe",
    ],
)
def test_a_damaged_line_is_refused_as_such(line: bytes) -> None:
    with pytest.raises(StoreError, match="damaged"):
        decode(line)


def test_text_that_json_cannot_hold_is_refused_by_its_request_id() -> None:
    with pytest.raises(StoreError, match="request-000007"):
        encode(record(7, prompt="half a pair: \ud800"))
