"""Escape sequences in file names, answers and reasons: they reach neither the terminal nor the log."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from coe import terminal
from coe.cli.common import print_result, table
from coe.errors import ConfigError
from coe.terminal import PrintableFormatter, printable
from gateway.observability.logs import JsonFormatter, TextFormatter
from tests.gateway.test_main import settings_of

HARM = "\x1b]0;owned\x07\x1b[2J\rforged\x00\x7f\x9b31m\u202egnp.exe\u2066\u2028"
"""Sets the terminal's title, clears the screen, overwrites the line, and turns the direction of writing."""
STEERING = set(HARM) - set("]0;owned[2Jforged31mgnp.exe")


def harmless(text: str) -> bool:
    return not STEERING & set(text)


def test_control_characters_become_escapes_and_words_stay() -> None:
    assert printable(HARM) == (
        "\\u001b]0;owned\\u0007\\u001b[2J\\u000dforged\\u0000\\u007f\\u009b31m\\u202egnp.exe\\u2066\\u2028"
    )
    for text in (
        "plain",
        "tab\tand\nlines",
        "\u00fcber \u65e5\u672c \u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f4bb",
        "",
    ):
        assert printable(text) == text
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"


def test_json_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"path": HARM})
    terminal.print_json({"path": os.fsdecode(b"caf\xe9")})
    first, second = capsys.readouterr().out.splitlines()
    assert harmless(first)
    assert json.loads(first)["path"] == HARM
    assert json.loads(second)["path"] == os.fsdecode(b"caf\xe9")


def test_everything_that_commands_print_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_line(HARM)
    terminal.print_error(HARM)
    for character in HARM:  # an answer that comes in pieces
        terminal.print_part(character)
    print_result(None, table((HARM, ">b"), [(HARM, None)]), json=False)
    printed = capsys.readouterr()
    assert harmless(printed.out)
    assert harmless(printed.err)
    assert printed.out.count("owned") == 4


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter(), PrintableFormatter("%(message)s")])
def test_no_line_of_the_log_is_forged_or_steers_a_terminal(formatter: logging.Formatter) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("tests.hostile.terminal")
    logger.propagate = False
    logger.addHandler(handler)
    forged = "2026-01-01 00:00:00,000 WARNING gateway: all is well"
    try:
        logger.warning("a file %s\n%s", HARM, forged, extra={"key": HARM})
        try:
            raise ConfigError(f"{HARM}\n{forged}")
        except ConfigError:
            logger.exception("no")
    finally:
        logger.removeHandler(handler)
    text = stream.getvalue()
    assert harmless(text)
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith("2026-01-01")]
    if isinstance(formatter, JsonFormatter):
        assert [orjson.loads(line)["level"] for line in lines] == ["warning", "error"]


def coe(*words: str, cwd: Path) -> tuple[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COE_")}
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "coe.cli", *words],
        cwd=cwd,
        env={**environ, "PYTHONPATH": str(root), "PYTHONUTF8": "1"},
        capture_output=True,
        timeout=120,
    )
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--config", "{harm}.yaml"),
        ("train", "--data", "{harm}"),
    ],
)
def test_errors_repeat_a_file_name_without_its_control_characters(tmp_path: Path, words: tuple[str, ...]) -> None:
    settings_of(tmp_path)
    name = HARM.replace("\x00", "")
    (tmp_path / f"{name}.jsonl").write_text("no json\n")
    (tmp_path / f"{name}.yaml").write_text("version: 2\n")
    out, error = coe(*(word.format(harm=name) for word in words), cwd=tmp_path)
    assert "owned" in out + error
    assert "Traceback" not in error
    assert harmless(out)
    assert harmless(error)
