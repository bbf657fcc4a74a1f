"""`coe check` refuses categories that training would refuse at the first start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.errors import ConfigError
from tests.cli.conftest import DECLARED

NEW = DECLARED.replace("{name: general", "{name: billing, description: b},\n  {name: general")


def check(config: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["check", "--config", str(config), *words], catch_exceptions=False)
    return result.stdout


def test_a_category_without_prompts_is_a_problem_on_its_line(config: Path) -> None:
    config.write_text(NEW)
    with pytest.raises(ConfigError, match=r"experts\.yaml:2: category 'billing' has 0 training prompts and needs 2"):
        check(config)
    assert "billing" in json.loads(check(config, "--json"))["problems"][0]
    for examples, count in (("[one]", 1), ("[same, same]", 1)):
        config.write_text(NEW.replace("description: b", f"description: b, examples: {examples}"))
        with pytest.raises(ConfigError, match=f"has {count} training prompts"):
            check(config)
    config.write_text(NEW.replace("description: b", "description: b, examples: [one, two]"))
    assert "good (3 categories" in check(config)


def test_a_router_in_use_needs_no_training(config: Path) -> None:
    config.write_text(NEW)
    store = ArtifactStore(config.parent / ".coe" / "artifacts", "router")
    with store.draft() as draft:
        (draft / "x").write_bytes(b"")
        version = store.publish(draft, categories=("code", "billing", "general"), data="d", metrics={}).manifest.version
    store.promote(version, by="train")
    assert "good (3 categories" in check(config)
    config.write_text(NEW.replace("{name: general", "{name: art, description: a, examples: [one]}, {name: general"))
    with pytest.raises(ConfigError, match=r"experts\.yaml:3: category 'art' is new to the router in use and has 1"):
        check(config)
