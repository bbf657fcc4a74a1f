"""A real vLLM server that cannot start: the first line of the error gives the reason."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.errors import FleetError
from coe.fleet.fleet import Fleet
from coe.fleet.planning import local_servers
from coe.registry import ExpertSpec

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


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, python: Path, model: Path, adapters: Path) -> dict[str, str]:
    """By what is wrong, the first line of why the expert did not start. All three try at once: each takes its time."""
    folder = tmp_path_factory.mktemp("refused")
    bloom = folder / "bloom"
    left_out = shutil.ignore_patterns("*.safetensors", "*.json.lock", "generation_config.json")
    shutil.copytree(model, bloom, ignore=left_out)
    (bloom / "config.json").write_bytes(orjson.dumps(BLOOM))
    lora: dict[str, Any] = {"adapter": str(adapters / "pirate"), "options": {**SMALL, "load-format": "dummy"}}
    declared: dict[str, dict[str, Any]] = {
        "flag": {"model": str(model), "options": {"max-modle-len": 512}},
        "memory": {"model": str(model), "options": {**SMALL, "max-model-len": 8192, "kv-cache-memory-bytes": "32M"}},
        "base": {"model": str(bloom), **lora},
    }

    async def all_three() -> list[str]:
        return await asyncio.gather(*(_failure(name, folder, python, one) for name, one in declared.items()))

    return dict(zip(declared, asyncio.run(all_three()), strict=True))


async def _failure(name: str, folder: Path, python: Path, declared: dict[str, Any]) -> str:
    expert = ExpertSpec.model_validate({"name": name, "runtime": "vllm", **declared})
    specs, _ = local_servers([expert], cache=folder, logs=folder, python=python)
    with pytest.raises(FleetError) as caught:
        async with Fleet(specs, report=print):
            pytest.fail("it started")
    first, second, *_ = str(caught.value).splitlines()
    assert second == f"last lines of {folder / name}.log:"
    return first


def test_a_flag_it_does_not_know(said: dict[str, str]) -> None:
    expected = "server 'flag' exited with code 2 before it was ready: unrecognized arguments: --max-modle-len"
    assert said["flag"] == expected


def test_too_little_memory(said: dict[str, str]) -> None:
    assert "exited with code 1 before it was ready: ValueError: To serve at least one request" in said["memory"]
    assert "0.18 GiB KV cache is needed" in said["memory"]


def test_a_base_without_lora_support(said: dict[str, str]) -> None:
    assert "does not support LoRA" in said["base"]
