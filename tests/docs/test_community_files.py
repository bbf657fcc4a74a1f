"""The files a contributor meets: pre-commit runs the rules of scripts/check, and forms and metadata are well-formed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def parsed(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def hooks() -> list[dict[str, Any]]:
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    found: list[dict[str, Any]] = repository["hooks"]
    return found


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_a_hook_runs_a_command_of_scripts_check_from_the_environment(hook: dict[str, Any]) -> None:
    assert hook["language"] == "system"
    assert hook["entry"].startswith(".venv/bin/")
    lines = (ROOT / "scripts" / "check").read_text().splitlines()
    assert any(line.startswith(hook["entry"].removeprefix(".venv/bin/")) for line in lines)


@pytest.mark.parametrize("tool", ["ruff format", "ruff check", "mypy", "lint-imports"])
def test_every_tool_of_scripts_check_has_a_hook(tool: str) -> None:
    assert any(hook["entry"].startswith(f".venv/bin/{tool}") for hook in hooks())


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_has_what_github_requires(path: Path) -> None:
    form = parsed(path)
    assert all(form[key] for key in ("name", "description", "body"))
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked) > 0
    assert all(field["attributes"]["label"] for field in asked)
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_the_licence_is_the_declared_one_in_full() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE", "NOTICE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


def test_every_release_in_the_changelog_keeps_the_order_of_sections() -> None:
    order = ["Added", "Changed", "Fixed", "Security"]
    releases = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    assert releases
    for release in releases:
        sections = [line.removeprefix("### ") for line in release.splitlines() if line.startswith("### ")]
        assert sections
        assert sections == [name for name in order if name in sections]
