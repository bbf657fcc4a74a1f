"""`coe log export` and `import` of a record with every field filled, in each form of file."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from coe.cli import app
from coe.records.record import RoutingRecord
from tests import forked
from tests.cli.logged_service import LoggedService
from tests.cli.test_cli import logged, record_of, run
from tests.records.test_every_field import RECORD


@pytest.fixture
def record(service: LoggedService) -> RoutingRecord:
    """In the Redis log of `service`."""
    one = replace(RECORD, time=service.began)
    service.append([one])
    return one


def tried(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_redacted_export_has_no_text_of_the_user(
    service: LoggedService, tmp_path: Path, record: RoutingRecord
) -> None:
    file = tmp_path / "log.jsonl"
    service.run("log", "export", file, "--redact")
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
    assert "does not exist; create it first" in result.output
    assert tried("log", "import", tmp_path / "none.jsonl", "--config", config).exit_code == 2


def test_an_empty_log_is_exported_as_a_file_without_rows(config: Path, tmp_path: Path) -> None:
    logged(config, replace(RECORD, time=1.0))
    with closing(sqlite3.connect(tmp_path / ".coe" / "routing-log.sqlite", isolation_level=None)) as connection:
        connection.execute("DELETE FROM records")
    for suffix in ("jsonl", "parquet"):
        file = tmp_path / f"log.{suffix}"
        assert "0 records" in run("log", "export", file, "--config", config)
        assert "0 records" in run("log", "import", file, "--config", config)


def test_where_there_is_no_log_nothing_is_exported_and_nothing_created(config: Path, tmp_path: Path) -> None:
    result = tried("log", "export", tmp_path / "log.jsonl", "--config", config)
    assert result.exit_code == 1
    assert "there is no routing log yet" in str(result.exception)
    assert "check --config and COE_HOME" in str(result.exception)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["experts.yaml"]


def test_an_empty_list_is_reported_and_names_undeclared_words(config: Path) -> None:
    logged(config, record_of(1))
    assert tried("log", "--expert", "smal", "--config", config).stderr == (
        "no records match; 'smal' is not a declared expert; declared: small\n"
    )
    assert tried("log", "--outcome", "aborted", "--config", config).stderr == "no records match\n"
    assert tried("log", "--config", config).stderr == ""


ENDLESS = """
import sys, time
from dataclasses import replace
from coe.cli import log, main
from tests.records.test_every_field import RATING, RECORD

def rows():
    for number in range(10**9):
        if number == 20_000:
            print("writing", flush=True)
        yield replace(RECORD, request_id=str(number)), RATING

write = log.write_rows
log.write_rows = lambda file, _, redact: write(file, rows(), redact=redact)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_interrupted_export_leaves_the_former_file_and_no_draft(
    config: Path, tmp_path: Path, number: signal.Signals, suffix: str
) -> None:
    logged(config, record_of(1))
    file = tmp_path / f"log.{suffix}"
    run("log", "export", file, "--config", config)
    before, names = file.read_bytes(), sorted(one.name for one in tmp_path.iterdir())
    words = [sys.executable, "-c", ENDLESS, "log", "export", str(file), "--config", str(config)]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        preexec_fn=forked.restore_interrupts,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(30) != 0
    assert file.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == names
