"""`coe check` reports what a start or reload will do with the plan and the router in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.errors import ArtifactError
from coe.measuring import sandbox
from coe.registry import Registry
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned, router_published, settings_in


@pytest.fixture(autouse=True)
def bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "installed", lambda: True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    registry = measured_registry()
    settings = settings_in(tmp_path, registry)
    planned(settings, registry)
    version = router_published(settings, "first")
    ArtifactStore(settings.artifacts, "router").promote(version, by="train")
    return settings


def check(settings: Settings, registry: Registry, *words: str) -> Result:
    """The report on a draft beside the file in use."""
    settings_in(settings.config.parent, registry)
    command = ["check", "--config", str(settings.config), *words]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def report(settings: Settings, registry: Registry) -> dict[str, Any]:
    result = check(settings, registry, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_declaration_that_artifacts_were_made_for_has_no_consequences(settings: Settings) -> None:
    found = report(settings, measured_registry())
    assert (found["ok"], found["consequences"], found["replan"]) == (True, [], False)
    assert check(settings, measured_registry()).stdout.count("\n") == 1


def test_a_missing_sandbox_for_code_is_noted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "installed", lambda: False)
    (note,) = report(settings, measured_registry())["notes"]
    assert note.startswith("bubblewrap is not installed: `coe score` and `coe tune` leave out the shipped probes")


def test_a_new_expert_is_a_consequence_with_the_advice_to_plan(settings: Settings) -> None:
    known = measured_registry().model_dump(mode="json", exclude_none=True)["experts"]
    edited = measured_registry(experts=[*known, {**known[0], "name": "newcomer"}])
    assert report(settings, edited)["replan"]
    output = check(settings, edited).stdout
    assert "  - expert 'newcomer' is not in the plan: clients can request it by name, and nothing is routed" in output
    assert output.endswith("the service starts and reloads with it; then run `coe plan` again\n")


def test_what_would_stop_the_start_is_a_problem(settings: Settings) -> None:
    other = {"name": "other", "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    edited = measured_registry(experts=[other], assignment={"general": "other"})
    with pytest.raises(ArtifactError, match="none of the experts"):
        check(settings, edited)
    result = check(settings, edited, "--json")
    assert result.exit_code == 1
    assert "`coe plan --forget`" in json.loads(result.stdout)["problems"][0]
