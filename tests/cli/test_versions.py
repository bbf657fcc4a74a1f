"""A version has the same id everywhere, and `coe versions` lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.registry import load
from coe.settings import Settings
from tests.admin.samples import measured_registry, planned, router_published, settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, measured_registry())


def store(settings: Settings, kind: str) -> ArtifactStore:
    return ArtifactStore(settings.artifacts, kind)


def listed(settings: Settings, *words: str) -> dict[str, dict[str, Any]]:
    command = ["versions", *words, "--config", str(settings.config), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {one["kind"]: one for one in json.loads(result.stdout)["kinds"]}


def fill(settings: Settings) -> dict[str, str]:
    """Versions of two kinds, as train, plan and retrain publish them."""
    registry = load(settings.config, environ={})
    old, new = router_published(settings, "old", metrics={"accuracy": 0.8}), router_published(settings, "new")
    store(settings, ROUTER).promote(new, by="retrain")
    store(settings, ROUTER).promote(old, by="train")
    store(settings, ROUTER).promote(new, by="hand")
    plan, _ = planned(settings, registry)
    return {"old": old, "new": new, "plan": plan}


def test_versions_are_listed_with_origin_quality_date_and_use(settings: Settings) -> None:
    ids = fill(settings)
    found = listed(settings)
    assert list(found) == ["router", "assignment", "gate"]
    routers = {one["version"]: one for one in found["router"]["versions"]}
    assert set(routers) == {ids["old"], ids["new"]}
    first = routers[ids["old"]]
    assert (first["origin"], first["quality"]) == ("train", 0.8)
    second = routers[ids["new"]]
    assert (second["origin"], second["quality"], found["router"]["in_use"]) == ("retrain", None, ids["new"])
    assert second["created"].startswith("20")
    (plan,) = found["assignment"]["versions"]
    assert (plan["version"], plan["origin"], found["assignment"]["in_use"]) == (ids["plan"], "plan", ids["plan"])
    assert 0.5 < plan["quality"] < 0.9
    gate = found["gate"]
    assert (gate["in_use"], gate["versions"]) == (None, [])
    assert gate["quality_of"] == "quality with the gate on held-out questions"
    assert list(listed(settings, "router")) == ["router"]


def test_the_list_for_people_names_what_is_declared_and_what_is_damaged(settings: Settings) -> None:
    def lines() -> list[str]:
        command = ["versions", "--config", str(settings.config)]
        return CliRunner().invoke(app, command, catch_exceptions=False).stdout.splitlines()

    assert "assignment: as declared in experts.yaml is in use" in lines()
    ids = fill(settings)
    plan = next(line.split() for line in lines() if ids["plan"] in line)
    assert plan[:4] == ["assignment", ids["plan"], "yes", "plan"]
    (settings.artifacts / ROUTER / ids["old"] / "manifest.json").write_text("half")
    assert any(ids["old"] in line and line.endswith("damaged") for line in lines())
