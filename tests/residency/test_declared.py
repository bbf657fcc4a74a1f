"""Residency in experts.yaml: invalid declarations are rejected with their place and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from coe.errors import ConfigError
from coe.fleet.engines import local_servers
from coe.fleet.residency.managed_server import plan_devices
from coe.registry import Registry, load


def declared(tmp_path: Path, *, residency: dict[str, Any] | None, **changes: Any) -> Registry:
    experts = [
        {"name": "small", "model": "m", "runtime": "vllm", "memory_gb": 10, **changes.pop("small", {})},
        {"name": "large", "model": "n", "runtime": "vllm", "memory_gb": 40, **changes.pop("large", {})},
    ]
    document = {
        "version": 1,
        "categories": [{"name": "general", "description": "anything"}],
        "experts": experts,
        "assignment": {"general": "small"},
        **changes,
    }
    if residency is not None:
        document["residency"] = residency
    path = tmp_path / "experts.yaml"
    with path.open("w") as file:
        YAML().dump(document, file)
    return load(path, environ={})


def devices(*memory: float, **more: Any) -> dict[str, Any]:
    return {"devices": [{"name": f"gpu{index}", "memory_gb": size} for index, size in enumerate(memory)], **more}


def gpus(*memory: float) -> dict[str, Any]:
    found = devices(*memory)["devices"]
    return {"devices": [{**one, "gpus": [number]} for number, one in enumerate(found)]}


GPU_0 = {"name": "gpu0", "memory_gb": 50, "gpus": [0]}
ON_0 = {"device": "gpu0"}


@pytest.mark.parametrize(
    ("residency", "changes", "message"),
    [
        (devices(20), {}, r"experts.yaml:\d+: .* leave 20 of 20 GB of 'gpu0', and 'large' needs 40; pin fewer, give"),
        (devices(45), {"large": {"pinned": True}}, "leave 5 of 45 GB of 'gpu0', and 'small' needs 10; pin fewer"),
        (devices(50, 50), {}, "name its device, one of gpu0, gpu1"),
        (gpus(50, 50), {"large": {**ON_0, "gpus": [1]}, "small": ON_0}, "its device declares `gpus`; leave them out"),
        ({"devices": [GPU_0, {**GPU_0, "name": "gpu1"}]}, {}, "GPU 0 is named twice; name it once"),
        (
            devices(50),
            {"large": {"runtime": "transformers", "sleep_level": 1}},
            "transformers servers cannot sleep at level 1; remove it",
        ),
        (devices(50, wait_timeout=5, max_wait=30), {}, r"wait_timeout must be at least max_wait \(30\)"),
        (devices(50), {"large": {"replicas": 2}}, "has one server; leave out `replicas` or `residency`"),
        (None, {"large": {"pinned": True}}, "declare `residency`"),
        (None, {"budget": {"memory_gb": 45}}, "raise it, or declare `residency`"),
    ],
)
def test_invalid_residency_declarations_are_rejected(
    tmp_path: Path, residency: dict[str, Any] | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        declared(tmp_path, residency=residency, **changes)


def test_experts_of_one_server_need_its_memory_once_and_one_device(tmp_path: Path) -> None:
    ways = ({"max_model_len": 8, "seed": 1}, {"seed": 1, "--max-model-len": 8})
    small, large = ({"model": "m", "memory_gb": 10, "pinned": True, "options": way} for way in ways)
    budget = {"budget": {"memory_gb": 10}}
    found = declared(tmp_path, residency=devices(10), small=small, large=large, **budget)
    assert found.experts[0].server_key == found.experts[1].server_key
    on = [{"device": f"gpu{number}"} for number in range(2)]
    with pytest.raises(ConfigError, match="'large': it shares the server of 'small', which is on another device"):
        declared(tmp_path, residency=devices(10, 10), small=small | on[0], large=large | on[1], **budget)


def test_servers_are_confined_to_their_device_which_may_have_less_memory_than_all_need(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.touch(mode=0o755)
    pairs = [{"name": name, "memory_gb": 45, "gpus": pair} for name, pair in (("x", [0, 1]), ("y", [2, 3]))]
    placed = {"small": {"device": "y", "model": "org/small"}, "large": {"device": "x", "model": "org/large"}}
    found = declared(tmp_path, residency={"devices": pairs}, budget={"memory_gb": 45}, **placed)
    specs, _ = local_servers(
        found.hosted_experts, cache=tmp_path, logs=tmp_path, python=command.with_name("python"), base_folder=tmp_path
    )
    assert all(" ".join(spec.argv).endswith("--tensor-parallel-size 2") for spec in specs)
    planned = plan_devices(found, specs)
    assert {
        device.name: {server.key: server.spec.env["CUDA_VISIBLE_DEVICES"] for server in device.servers}
        for device in planned
    } == {"x": {"large": "0,1"}, "y": {"small": "2,3"}}
    assert {name: device.name for device in planned for name in device.experts} == {"large": "x", "small": "y"}
