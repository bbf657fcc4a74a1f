"""Version, and grouped help with examples."""

from __future__ import annotations

import shlex

import pytest
from typer.testing import CliRunner

from coe import __version__
from coe.cli import EXAMPLES, app
from tests.docs.command_line import mistakes


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return result.exit_code, result.output


def test_the_version_is_printed() -> None:
    assert run("--version") == (0, f"coe {__version__}\n")


def test_help_lists_every_verb_once_under_a_panel() -> None:
    _, text = run("--help")
    panels = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels == ["Options:", "Set up:", "Run:", "Measure and plan:", "Learn:", "Documents:"]
    verbs = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    assert all(sum(line.startswith(f"  {verb} ") for line in text.splitlines()) == 1 for verb in verbs)
    assert "[default: COE_CONFIG or experts.yaml]" in " ".join(run("check", "--help")[1].split())


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_examples_of_a_verb_are_in_its_help_and_are_valid(verb: str) -> None:
    text = run(verb, "--help")[1]
    for example in EXAMPLES[verb]:
        assert f"    {example}\n" in text
        assert [*mistakes(shlex.split(example)[1:])] == []
