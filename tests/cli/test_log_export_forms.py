"""`coe log export` and `import` of a record with every field filled, in each form of file."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from coe.cli import app
from coe.record import LogQuery, RoutingRecord
from coe.records import open_log
from tests.cli.shop import Shop
from tests.cli.test_cli import logged, record_of, run
from tests.records.test_every_field import RECORD


@pytest.fixture
def record(shop: Shop) -> RoutingRecord:
    """In the Redis log of `shop`."""
    one = replace(RECORD, time=shop.began)
    shop.append([one])
    return one


def tried(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_field_goes_from_redis_to_a_file_and_into_sqlite(
    shop: Shop, tmp_path: Path, record: RoutingRecord, suffix: str
) -> None:
    file = tmp_path / f"log.{suffix}"
    assert "1 records" in shop.run("log", "export", file)
    shop.url = "sqlite:///other.sqlite"
    shop.declare()
    for _ in range(2):
        assert "1 records" in shop.run("log", "import", file)

    async def found() -> tuple[RoutingRecord, ...]:
        log = open_log(shop.url, base=shop.settings.home)
        try:
            return (await log.read(LogQuery())).records
        finally:
            await log.aclose()

    assert asyncio.run(found()) == (record,)


def test_the_list_prints_the_same_json_as_the_export(shop: Shop, tmp_path: Path, record: RoutingRecord) -> None:
    file = tmp_path / "log.jsonl"
    shop.run("log", "export", file)
    exported, printed = orjson.loads(file.read_bytes()), orjson.loads(shop.run("log", "--json"))
    assert exported.items() >= printed.items()
    assert printed["request_id"] == record.request_id


def test_a_redacted_export_has_no_text_of_the_user(shop: Shop, tmp_path: Path, record: RoutingRecord) -> None:
    file = tmp_path / "log.jsonl"
    shop.run("log", "export", file, "--redact")
    exported = orjson.loads(file.read_bytes())
    assert (exported["prompt"], exported["embedding"], exported["digest"]) == (None, None, "")
    assert exported["request_id"] == record.request_id


def test_a_file_of_another_kind_or_in_no_folder_is_bad_usage(config: Path, tmp_path: Path) -> None:
    logged(config, record_of(1))
    for verb in ("export", "import"):
        (tmp_path / "log.csv").touch()
        result = tried("log", verb, tmp_path / "log.csv", "--config", config)
        assert result.exit_code == 2
        assert "must end in .jsonl or .parquet" in result.output
    result = tried("log", "export", tmp_path / "nowhere" / "log.jsonl", "--config", config)
    assert result.exit_code == 2
    assert "there is no folder" in result.output
    assert tried("log", "import", tmp_path / "none.jsonl", "--config", config).exit_code == 2


def test_an_empty_log_is_exported_as_a_file_without_rows(config: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet"):
        file = tmp_path / f"log.{suffix}"
        assert "0 records" in run("log", "export", file, "--config", config)
        assert "0 records" in run("log", "import", file, "--config", config)
