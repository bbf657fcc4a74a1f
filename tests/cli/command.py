"""Runs `coe` commands in the test's process."""

from __future__ import annotations

from typer.testing import CliRunner

from coe.cli import app


def run(*words: object) -> str:
    """Run a `coe` command, which must succeed, and return its standard output."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
