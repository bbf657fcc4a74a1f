"""Verbs check their output files before the work, and report errors in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe.cli import app


def coe(*words: str | Path, **variables: str) -> tuple[int, str]:
    """Run the command, and return its exit code and error message."""
    done = subprocess.run(
        [sys.executable, "-m", "coe.cli", *words], capture_output=True, env={**os.environ, **variables}, timeout=240
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("place", "output"),
    [("gone/a.json", "does not exist"), (".", "is a folder"), ("kept", "may not be written")],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    place: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coe.cli.common.os.access", lambda path, mode: (Path(path).name, mode) != ("kept", os.W_OK))
    (tmp_path / "kept").touch()
    result = CliRunner().invoke(app, ["route", "--input", "data", "--output", place], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert output in result.output


def test_a_path_that_is_no_file_or_no_folder_is_reported_in_one_line(config: Path, tmp_path: Path) -> None:
    code, output = coe("route", "--config", config, "--input", tmp_path / "gone.jsonl")
    assert (code, output.count("\n")) == (1, 1)
    code, output = coe("train", "--config", config, COE_HOME=str(config))
    assert (code, output) == (1, f"{config}/artifacts/router: Not a directory\n")


def test_output_of_libraries_does_not_mix_with_the_command_s_output() -> None:
    begin = "import os; from coe.cli.common import keep_stdout_clean; keep_stdout_clean()"
    script = f"{begin}; os.write(1, b'noise\\n'); print('said')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("said\n", "noise\n")
