"""A second `coe up` with one state folder is refused."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from coe.cli import app
from coe.cli.up import LOCK_FILE
from coe.errors import FleetError
from coe.file_lock import file_lock
from coe.fleet.specs import free_port
from coe.settings import Settings


def test_a_second_coe_up_is_refused_with_the_first_one_named_and_changes_nothing(config: Path) -> None:
    home = Settings.read({}, config=config).home
    with file_lock(home / LOCK_FILE, held=FleetError):
        result = CliRunner().invoke(app, ["up", "--config", str(config), "--port", str(free_port())])
    assert isinstance(result.exception, FleetError)
    assert f"another `coe up` uses the state folder {home} (process " in str(result.exception)
    assert "stop it, or set COE_HOME to another folder" in str(result.exception)
    assert not (home / "endpoints.json").exists()
