"""Every declaration in examples/ passes `coe check` without a network, and a broken copy of it fails."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import Result
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import CoEError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")
ADAPTER = re.compile(r"^ *adapter: (\S+)", re.MULTILINE)
NEEDY = [path for path in EXAMPLES if VARIABLE.search(path.read_text()) or ADAPTER.search(path.read_text())]
"""Those that need environment variables or adapter folders."""


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def declaration(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example with what its comment head requires: variables are set and adapter folders exist."""
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    for name in ("COE_CONFIG", "COE_HOME"):
        monkeypatch.delenv(name, raising=False)
    text = example.read_text()
    for name in VARIABLE.findall(text):
        monkeypatch.setenv(name, "not-a-real-key")
    for folder in ADAPTER.findall(text):
        _write_adapter(tmp_path / folder)
    return Path(shutil.copy(example, tmp_path))


def _no_network(*_: Any, **__: Any) -> None:
    raise AssertionError("`coe check` opened a connection")


def _write_adapter(folder: Path) -> None:
    """A folder that looks like a LoRA adapter saved by PEFT; `coe check` reads its configuration only."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_bytes(orjson.dumps({"peft_type": "LORA", "r": 8}))
    (folder / "adapter_model.safetensors").touch()


def check(path: Path) -> Result:
    return CliRunner().invoke(app, ["check", "--config", str(path), "--json"])


def replaced(path: Path, old: str, new: str) -> int:
    """Replace the first occurrence in the file; returns its line number."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
    assert NEEDY


def test_an_example_passes_the_check(declaration: Path) -> None:
    result = check(declaration)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert "general" in found["categories"]


def test_an_example_explains_itself_at_its_top(example: Path) -> None:
    first, second, third = example.read_text().splitlines()[:3]
    assert first == "# yaml-language-server: $schema=../docs/experts.schema.json"
    assert second == "#"
    assert third.startswith("# ")
    assert f"coe check --config examples/{example.name}" in example.read_text()


def test_an_unknown_expert_fails_with_its_line(declaration: Path) -> None:
    line = replaced(declaration, "  general: ", "  general: no-such-")
    result = check(declaration)
    assert result.exit_code == 1
    (problem,) = [text for text in json.loads(result.stdout)["problems"] if "unknown expert" in text]
    assert problem.startswith(f"{declaration.name}:{line}: ")


def test_a_misspelt_key_fails_with_the_nearest_known_one(declaration: Path) -> None:
    line = replaced(declaration, "    context_length: ", "    context_lenght: ")
    result = check(declaration)
    assert result.exit_code == 1
    problems = json.loads(result.stdout)["problems"]
    assert any(text.startswith(f"{declaration.name}:{line}: ") and "context_length" in text for text in problems)


@pytest.mark.parametrize("example", NEEDY, ids=lambda path: path.stem, indirect=True)
def test_a_missing_variable_or_adapter_is_reported(
    example: Path, declaration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, adapters = VARIABLE.findall(example.read_text()), ADAPTER.findall(example.read_text())
    for name in variables:
        monkeypatch.delenv(name)
    for folder in adapters:
        shutil.rmtree(declaration.parent / folder)
    result = check(declaration)
    assert result.exit_code == 1
    for name in (*variables, *adapters):
        assert name in result.stdout


def test_all_errors_of_the_check_are_its_own(declaration: Path) -> None:
    declaration.write_text("version: [")
    result = CliRunner().invoke(app, ["check", "--config", str(declaration)])
    assert result.exit_code == 1
    assert isinstance(result.exception, CoEError)
