"""`coe categories suggest`: entries for clusters of prompts that the router is unsure of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML
from typer.testing import CliRunner

import routers
from coe.artifacts import active_state
from coe.cli import app
from coe.core import Prediction
from coe.errors import DataError
from tests.fakes import registry_of
from tests.probes.test_probes_command import logged

CARS = [f"Which clutch fits a red car of {year}?" for year in range(1950, 2000)]
KNOWN = [f"Sort list number {n} in Python" for n in range(60)]


class UnsureOfCars:
    """Routes everything to code, and is sure of it unless the text is about cars."""

    categories = ("code", "art", "general")

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        sure = Prediction(np.array([0.9, 0.05, 0.05], dtype=np.float32), "fast")
        unsure = Prediction(np.array([0.4, 0.2, 0.4], dtype=np.float32), "fast")
        return [unsure if "car" in text else sure for text in texts]


class Directions:
    """Embeds texts about clutches near one direction."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        random = np.random.default_rng(0)
        vectors = random.normal(size=(len(texts), 16)) + 9 * np.array(["clutch" in text for text in texts])[:, None]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    artifact = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(active_state, "check_router", lambda _: (registry_of(), artifact))
    monkeypatch.setattr(active_state, "load_router", lambda *_: UnsureOfCars())
    monkeypatch.setattr(routers, "load_encoder", lambda _: Directions())
    return tmp_path / "experts.yaml"


def file_of(folder: Path, prompts: Sequence[str]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def test_a_cluster_becomes_an_entry_that_can_be_pasted(config: Path) -> None:
    noise = [f"Is the {word} of my car loud?" for word in "abcdefghijklmnopqrst"]
    path = file_of(config.parent, [*CARS, *CARS, *KNOWN, *noise])
    result = CliRunner().invoke(app, ["categories", "suggest", str(path), "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert "70 of 130 different prompts are below the confidence 0.70" in result.stderr
    entry = YAML(typ="safe").load(result.stdout)[0]  # the largest cluster first
    assert "clutch" in entry["name"]
    assert "clutch" in entry["description"]
    assert set(entry["examples"]) <= set(CARS)
    assert "# 50 prompts (38.5%)" in result.stdout
    assert "# routed now to code 100%" in result.stdout


def test_rows_are_bounded_and_bad_ones_are_named(config: Path) -> None:
    path = file_of(config.parent, [*KNOWN, *CARS])
    command = ["categories", "suggest", str(path), "--config", str(config), "--json"]
    few = json.loads(CliRunner().invoke(app, [*command, "--limit", "80"]).stdout)
    assert (few["prompts"], few["unsure"], few["suggestions"]) == (80, 20, [])
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, DataError)
    assert "prompts.jsonl:2: expected an object with `prompt` (text)" in str(result.exception)


def test_a_log_without_prompts_is_refused_with_the_remedy(config: Path) -> None:
    result = CliRunner().invoke(app, ["categories", "suggest", "--config", str(config)])
    assert isinstance(result.exception, DataError)
    assert "name a file of prompts" in str(result.exception)


KEYS = {"keys": [{"name": "k", "tenant": "a", "sha256": "0" * 64}]}


@pytest.mark.parametrize(("fields", "status"), [({}, 0), ({"limited": True}, 1)])
def test_with_keys_only_tenants_that_agree_are_read_and_nothing_that_is_kept_from_experts(
    config: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], status: int
) -> None:
    artifact = SimpleNamespace(folder=config.parent)
    monkeypatch.setattr(active_state, "check_router", lambda _: (registry_of(access=KEYS), artifact))
    logged(config.parent, **fields)
    command = ["categories", "suggest", "--config", str(config), "--json"]
    assert CliRunner().invoke(app, command).exit_code == 2
    found = CliRunner().invoke(app, [*command, "--tenant", "b"])
    assert found.exit_code == status
    assert status or json.loads(found.stdout)["prompts"] == 1
