"""A record with every field filled, through every form that a record takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import orjson
import pytest
from jsonschema import Draft202012Validator

from coe.learning.log_frame import Rating, write_rows
from coe.records.record import RECORD as CODEC
from coe.records.record import LogPage, LogQuery, RecipeCall, RoutingLog, RoutingRecord, Utility
from gateway.endpoints.admin import records
from gateway.endpoints.routes import document
from tests.fakes import registry_of

pytestmark = pytest.mark.anyio
SAMPLES: dict[Any, Any] = {
    str: "né 日本語 🦜 \n\" '",
    float: 0.1 + 0.2,
    int: 2**40,
    bool: True,
    tuple[str, ...]: ("a", "", "ß"),
    tuple[Utility, ...]: (0.25, float("-inf"), 1e-300),
    tuple[float, ...]: (0.75, 0.25),
    Mapping[str, float]: {"code": 0.75, "": 0.25},
    tuple[RecipeCall, ...]: (
        RecipeCall("small", 0, "answered", 3, 2**40, 0.1 + 0.2, 0, 0.75, True),
        RecipeCall("large", 1, "timeout"),
    ),
}
"""A value that is not the default for each type that a field may have."""


def filled(declared: type) -> dict[str, Any]:
    """A value for every field, by its type. A field of another type fails here until it has a sample and a Kind."""
    hints = get_type_hints(declared, include_extras=True)
    return {one.name: SAMPLES[_plain(hints[one.name])] for one in fields(declared)}


def _plain(hint: Any) -> Any:
    """The type without its None."""
    return hint if hint in SAMPLES else next(one for one in get_args(hint) if one is not NoneType)


RECORD = RoutingRecord(**filled(RoutingRecord) | {"schema": 1, "time": 1_700_000_000.125})
RATING = Rating(**filled(Rating))


def test_every_field_has_a_sample_that_is_not_its_default_and_a_meaning() -> None:
    for one in fields(RoutingRecord):
        assert one.name == "schema" or getattr(RECORD, one.name) != one.default, one.name
    schema = CODEC.adapter.json_schema()
    for one in (schema, schema["$defs"]["RecipeCall"]):
        assert [name for name, field in one["properties"].items() if not field["description"].endswith(".")] == []


async def test_every_field_survives_the_log(log: RoutingLog) -> None:
    await log.append([RECORD])
    assert await log.find(RECORD.request_id) == RECORD
    assert (await log.read(LogQuery())).records == (RECORD,)


def test_every_field_survives_a_file(tmp_path: Path) -> None:
    path, bare = tmp_path / "log.jsonl", RoutingRecord(**_required())
    assert write_rows(path, [(RECORD, RATING), (bare, Rating())]) == 2
    lines = path.read_bytes().splitlines()
    assert [CODEC.decode(line) for line in lines] == [RECORD, bare]
    assert [{name: orjson.loads(line)[name] for name in asdict(RATING)} for line in lines] == [
        asdict(RATING),
        asdict(Rating()),
    ]
    assert list(tmp_path.iterdir()) == [path]


def _required() -> dict[str, Any]:
    return {field.name: getattr(RECORD, field.name) for field in fields(RoutingRecord) if field.default is MISSING}


def test_redaction_empties_the_private_fields_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_rows(path, [(RECORD, RATING)], redact=True)
    record = CODEC.decode(path.read_bytes())
    changed = {one.name for one in fields(record) if getattr(record, one.name) != getattr(RECORD, one.name)}
    assert changed == {"prompt", "left_out", "digest"}
    assert (record.prompt, record.left_out, record.digest) == (None, (), "")


def test_what_the_api_returns_fits_its_schema() -> None:
    for values, schema in (
        (records.list_body(LogPage((RECORD,), ""), registry_of()), "RecordList"),
        (records.record_body(RECORD, (), registry_of()), "Record"),
    ):
        Draft202012Validator(document()["components"]["schemas"][schema]).validate(orjson.loads(orjson.dumps(values)))
