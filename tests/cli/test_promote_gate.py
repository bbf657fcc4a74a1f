"""`coe promote gate` and `coe rollback gate`: the gate to the documents, moved by hand."""

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from coe.artifacts.store import ArtifactStore
from coe.cli import app
from coe.retrieval.gate import GATE_FILE
from tests.cli.command import run
from tests.fakes import registry_of
from tests.retrieval.gates import CATEGORIES, gate_of


@pytest.fixture
def config(tmp_path: Path) -> Path:
    declared = registry_of().model_dump(mode="json", exclude_none=True)
    (tmp_path / "experts.yaml").write_bytes(orjson.dumps(declared))
    return tmp_path / "experts.yaml"


def fitted(config: Path, odds: float) -> str:
    store = ArtifactStore(config.parent / ".coe" / "artifacts", "gate")
    with store.draft() as draft:
        gate_of(odds).save(draft / GATE_FILE)
        return store.publish(draft, categories=CATEGORIES, data="", metrics={}).manifest.version


def test_a_gate_is_promoted_and_rolled_back(config: Path) -> None:
    first, second = fitted(config, 1.0), fitted(config, 2.0)
    assert first in run("promote", "gate", first, "--config", config)
    assert f"{first} -> {second}" in run("promote", "gate", second, "--config", config)
    assert f"{second} -> {first}" in run("rollback", "gate", "--config", config)


def test_the_newest_readable_gate_is_promoted_and_an_unreadable_one_is_named(config: Path) -> None:
    good, damaged = fitted(config, 1.0), fitted(config, 2.0)
    manifest = config.parent / ".coe" / "artifacts" / "gate" / damaged / "manifest.json"
    manifest.write_text("half")
    result = CliRunner().invoke(app, ["promote", "gate", "--config", str(config)], catch_exceptions=False)
    assert result.exit_code == 0
    assert good in result.stdout
    assert "note: a version is left out" in result.stderr
    assert damaged in result.stderr
