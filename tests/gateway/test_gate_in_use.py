"""The gate that a gateway serves: the one in use, if it fits router, encoder and format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coe.artifacts.active_state import ActiveState, gate_in_use
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError
from coe.planning.problem import declared_assignment
from coe.retrieval.gate import GATE_FILE, Gate
from coe.settings import Settings
from tests.fakes import WordRouter, registry_of
from tests.retrieval.gates import CATEGORIES, WIDTH, gate_of


def put(settings: Settings, **changes: object) -> None:
    """A gate with something else in its file, put into use."""
    store = ArtifactStore(settings.artifacts, "gate")
    with store.draft() as draft:
        gate_of(1.0).save(draft / GATE_FILE)
        with np.load(draft / GATE_FILE) as file:
            arrays = dict(file)
        np.savez(draft / GATE_FILE, **arrays | changes)
        version = store.publish(draft, categories=CATEGORIES, data=str(changes), metrics={}).manifest.version
    store.promote(version)


def served(settings: Settings, dimensions: int = WIDTH) -> Gate | None:
    registry = registry_of()
    assignment = declared_assignment(registry, CATEGORIES)
    in_use = ActiveState(registry, WordRouter(), assignment, 0.0, settings.home)
    return gate_in_use(settings, in_use, dimensions=dimensions)


def test_a_gate_is_served_where_it_fits_and_else_the_service_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    assert served(settings) is None
    put(settings)
    gate = served(settings)
    assert gate is not None
    assert gate.experts == registry_of().expert_names
    assert served(settings, dimensions=WIDTH + 1) is None
    assert "another encoder" in caplog.text
    put(settings, format=np.array(1))
    with pytest.raises(ArtifactError, match="not a gate"):
        served(settings)
