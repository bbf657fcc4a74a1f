"""One real vLLM server behind `coe up` and the real gateway, for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.fleet import weights
from tests.vllm.adapter_answers import ADAPTER_ANSWERS
from tests.vllm.service import Service

ROOT = Path(__file__).parent.parent.parent
VENV = ROOT / ".venv-vllm"
MODELS = VENV / "models"
OPTIONS = {
    "dtype": "float32",
    "enforce-eager": True,
    "max-model-len": 1024,
    "max-num-seqs": 4,
    "max-num-queued-reqs": 8,  # of all that run or wait
    "kv-cache-memory-bytes": "256M",
}


@pytest.fixture(scope="session")
def python() -> Path:
    """vLLM's interpreter."""
    found = VENV / "bin" / "python"
    assert found.exists(), "run these with scripts/test-vllm, which makes the environment that they need"
    return found


@pytest.fixture(scope="session")
def model() -> Path:
    cache = Path(os.environ.get("COE_TEST_CACHE", MODELS))
    found = weights.resolve("SmolLM2-135M-Instruct", cache=cache, report=print)
    assert isinstance(found, Path)
    return found


@pytest.fixture(scope="session")
def adapters(python: Path, model: Path) -> Path:
    """A folder with one trained LoRA adapter for each manner; trained once, in some 10 s each."""
    source = Path(__file__).with_name("train_adapters.py")
    made = MODELS / "adapters" / str(source.stat().st_mtime_ns)
    if not all((made / name / "adapter_model.safetensors").exists() for name in ADAPTER_ANSWERS):
        environ = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = (python, "-m", "tests.vllm.train_adapters", model, made)
        subprocess.run(command, env=environ, cwd=ROOT, check=True, timeout=400)
    return made


@pytest.fixture(scope="session")
def service(model: Path, adapters: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The base, two adapters on it, and a spare expert elsewhere that answers when they cannot."""
    with Service(tmp_path_factory.mktemp("service"), bin_folder=python.parent) as service:
        base = {"model": str(model), "runtime": "vllm", "options": OPTIONS, "capabilities": ["json_schema"]}
        service.declare(
            {"name": "base", **base},
            *({"name": name, "adapter": str(adapters / name), **base} for name in ADAPTER_ANSWERS),
        )
        service.start()
        yield service


@pytest.fixture
def awake(service: Service) -> Service:
    """The service with its server up again, whatever the last test did to it."""
    service.until_answered("base")
    return service
