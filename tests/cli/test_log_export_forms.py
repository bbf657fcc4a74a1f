"""`coe log export` refuses what it cannot do, and leaves nothing half done."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from coe.cli import app
from tests import forked
from tests.cli.test_cli import logged, record_of, run


def tried(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_file_of_another_kind_or_in_no_folder_is_bad_usage(config: Path, tmp_path: Path) -> None:
    logged(config, record_of(1))
    result = tried("log", "export", tmp_path / "log.csv", "--config", config)
    assert result.exit_code == 2
    assert "must end in .jsonl" in result.output
    result = tried("log", "export", tmp_path / "nowhere" / "log.jsonl", "--config", config)
    assert result.exit_code == 2
    assert "does not exist; create it first" in result.output


def test_where_there_is_no_log_nothing_is_exported_and_nothing_created(config: Path, tmp_path: Path) -> None:
    result = tried("log", "export", tmp_path / "log.jsonl", "--config", config)
    assert result.exit_code == 1
    assert "there is no routing log yet" in str(result.exception)
    assert "check --config and COE_HOME" in str(result.exception)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["experts.yaml"]


def test_an_export_writes_through_a_link_and_refuses_a_device(config: Path, tmp_path: Path) -> None:
    logged(config, record_of(1))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "log.jsonl")
    run("log", "export", tmp_path / "link.jsonl", "--config", config)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "log.jsonl").read_bytes().count(b"\n") == 1
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    result = tried("log", "export", tmp_path / "full.jsonl", "--config", config)
    assert result.exit_code == 2
    assert "is not a regular file" in result.output


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


def test_an_interrupted_export_leaves_the_former_file_and_no_draft(config: Path, tmp_path: Path) -> None:
    logged(config, record_of(1))
    file = tmp_path / "log.jsonl"
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
    assert file.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == names
