"""Training elsewhere gives the router that training here gives."""

from __future__ import annotations

import builtins
import gc
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import routers
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ClusterError
from coe.jobs.engine import ray_task_runner
from routers.encoders import OnnxEncoder
from tests.routers.conftest import examples


def version_of(folder: Path, store: ArtifactStore) -> str:
    with store.draft() as draft:
        for path in folder.iterdir():
            (draft / path.name).write_bytes(path.read_bytes())
        return store.publish(draft, categories=(), data="", metrics={}).manifest.version


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # Ray does not wait for its own
def test_the_router_is_the_same_to_the_last_bit_wherever_work_runs(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routers.encoders.GROUP", 3)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    build = partial(routers.build, examples(), encoder=str(tiny_encoder), threads=1)
    build(out=tmp_path / "here")
    with ray_task_runner() as work:
        build(out=tmp_path / "there", work=work)
        with pytest.raises(ArtifactError, match="missing"):
            list(work.map(_failing, ["network.onnx"]))
    gc.collect()  # or its processes would be missed in another test
    store = ArtifactStore(tmp_path, "router")
    assert version_of(tmp_path / "here", store) == version_of(tmp_path / "there", store)


def _failing(name: str) -> None:
    OnnxEncoder(Path(name), None)  # type: ignore[arg-type]


def test_an_encoder_travels_with_its_network(built: tuple[Path, Any, Any]) -> None:
    here = OnnxEncoder.load(built[0] / "encoder.onnx", built[0] / "tokenizer.json")
    there = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(here))))
    np.testing.assert_array_equal(there.encode(["bake a star"]), here.encode(["bake a star"]))


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refusing(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ClusterError, match=r"pip install 'coe\[ray\]'"), ray_task_runner():
        pass
