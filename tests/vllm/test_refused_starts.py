"""A real vLLM that cannot start says why, in the first line of the error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import FleetError
from coe.fleet import Fleet, local_servers
from coe.registry import ExpertSpec

pytestmark = pytest.mark.anyio

SMALL = {"dtype": "bfloat16", "enforce-eager": True, "max-model-len": 512, "kv-cache-memory-bytes": "64M"}
BLOOM = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "hidden_size": 64,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


async def failure(folder: Path, python: Path, **declared: Any) -> str:
    """The first line of why the expert did not start."""
    expert = ExpertSpec.model_validate({"name": "bad", "runtime": "vllm", **declared})
    specs, _ = local_servers([expert], cache=folder, logs=folder, python=python)
    with pytest.raises(FleetError) as caught:
        async with Fleet(specs, say=print):
            pytest.fail("it started")
    first, second, *_ = str(caught.value).splitlines()
    assert second == f"last lines of {folder / 'bad.log'}:"
    return first


async def test_a_flag_it_does_not_know(tmp_path: Path, python: Path, model: Path) -> None:
    said = await failure(tmp_path, python, model=str(model), options={"max-modle-len": 512})
    assert said == "server 'bad' exited with code 2 before it was ready: unrecognized arguments: --max-modle-len"


async def test_too_little_memory(tmp_path: Path, python: Path, model: Path) -> None:
    options = {**SMALL, "max-model-len": 8192, "kv-cache-memory-bytes": "32M"}
    said = await failure(tmp_path, python, model=str(model), options=options)
    assert "exited with code 1 before it was ready: ValueError: To serve at least one request" in said
    assert "0.18 GiB KV cache is needed" in said


async def test_a_base_without_lora_support(tmp_path: Path, python: Path, model: Path, adapters: Path) -> None:
    base = tmp_path / "bloom"
    shutil.copytree(
        model, base, ignore=shutil.ignore_patterns("*.safetensors", "*.json.lock", "generation_config.json")
    )
    (base / "config.json").write_bytes(orjson.dumps(BLOOM))
    said = await failure(
        tmp_path,
        python,
        model=str(base),
        adapter=str(adapters / "pirate"),
        options={**SMALL, "load-format": "dummy"},
    )
    assert "does not support LoRA" in said
