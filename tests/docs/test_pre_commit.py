"""pre-commit runs the rules of scripts/check, from the environment of the repository."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]


def test_every_hook_runs_a_command_of_scripts_check() -> None:
    lines = (ROOT / "scripts" / "check").read_text().splitlines()
    (repository,) = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["hooks"]
    for hook in repository["hooks"]:
        command = hook["entry"].removeprefix(".venv/bin/")
        assert hook["language"] == "system", hook
        assert command != hook["entry"], hook
        assert any(line.startswith(command) for line in lines), hook
