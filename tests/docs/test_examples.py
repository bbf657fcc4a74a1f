"""Every declaration in examples/ passes `coe check` without a network, once its variables and adapters are there."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe.cli import app

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_passes_the_check(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    for name in ("COE_CONFIG", "COE_HOME"):
        monkeypatch.delenv(name, raising=False)
    text = example.read_text()
    for name in re.findall(r"\$\{([A-Z_]+)\}", text):
        monkeypatch.setenv(name, "not-a-real-key")
    for folder in re.findall(r"^ *adapter: (\S+)", text, re.MULTILINE):
        _write_adapter(tmp_path / folder)
    result = CliRunner().invoke(app, ["check", "--config", str(shutil.copy(example, tmp_path)), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"] is True


def _no_network(*_: Any, **__: Any) -> None:
    raise AssertionError("`coe check` opened a connection")


def _write_adapter(folder: Path) -> None:
    """A folder that looks like a LoRA adapter saved by PEFT; `coe check` reads its configuration only."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").touch()
