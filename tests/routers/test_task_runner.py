"""Training on a cluster gives the same router as training in this process."""

from __future__ import annotations

import builtins
import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import routers
from coe.artifacts.store import ArtifactStore
from coe.cli.executor import Executor, task_runner
from coe.errors import ArtifactError, ClusterError
from routers.encoders import OnnxEncoder
from tests.routers.conftest import examples


def version_of(folder: Path, store: ArtifactStore) -> str:
    with store.draft() as draft:
        for path in folder.iterdir():
            (draft / path.name).write_bytes(path.read_bytes())
        return store.publish(draft, categories=(), data="", metrics={}).manifest.version


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running:ResourceWarning"
)  # Ray does not wait for its processes
def test_the_router_is_identical_wherever_tasks_run(
    tiny_encoder: Path, exported: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routers.encoders.TEXTS_PER_TASK", 3)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster of another test, which may be about to end
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    build = partial(routers.build, examples(), encoder=str(tiny_encoder), threads=1)
    build(out=tmp_path / "local")
    with task_runner(Executor.RAY) as runner:
        build(out=tmp_path / "ray", runner=runner)
        with pytest.raises(ArtifactError, match="missing"):
            list(runner.map(_failing, ["network.onnx"]))
    gc.collect()  # stops its processes before another test counts them
    store = ArtifactStore(tmp_path, "router")
    assert version_of(tmp_path / "local", store) == version_of(tmp_path / "ray", store)


def _failing(name: str) -> None:
    OnnxEncoder(Path(name), None)  # type: ignore[arg-type]


def test_without_ray_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refusing(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ClusterError, match=r"pip install 'composition-of-experts\[ray\]'"), task_runner(Executor.RAY):
        pass
