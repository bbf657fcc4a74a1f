"""Residency in experts.yaml: invalid declarations are rejected with their place and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from coe.errors import ConfigError
from coe.fleet.planning import local_servers
from coe.fleet.residency.devices import plan_devices
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
        (devices(20), {}, r"experts.yaml:\d+: 'gpu0' has 20 GB and 'large' alone needs 40; give the device more"),
        (devices(45), {"large": {"pinned": True}}, "leave 5 GB of 'gpu0', and 'small' needs 10; pin fewer"),
        (devices(50, 50), {}, "name its device, one of gpu0, gpu1"),
        (devices(50), {"large": {"device": "gpu1"}}, "name its device, one of gpu0"),
        (gpus(50, 50), {"large": {"device": "any"}, "small": {"device": "gpu2"}}, "name its device, one of gpu0, gpu1"),
        (
            devices(50, 50),
            {"large": {"device": ["gpu0", "gpu1"]}, "small": ON_0},
            "confined to 'gpu0'; declare the `gpus`",
        ),
        (gpus(50, 20), {"large": {"device": "any"}, "small": ON_0}, "'gpu1' has 20 GB and 'large' alone needs 40"),
        (
            gpus(50, 50),
            {"large": {"device": "any", "pinned": True}, "small": ON_0},
            "a pinned expert stays .*; name one",
        ),
        (
            gpus(50, 50),
            {"large": {"device": "any", "runtime": "transformers"}, "small": ON_0},
            "transformers servers cannot be confined to one of them; name one",
        ),
        (gpus(50, 50), {"large": {"device": ["gpu0", "gpu0"]}, "small": ON_0}, "a device is named twice: gpu0, gpu0"),
        (gpus(50, 50), {"large": {**ON_0, "gpus": [1]}, "small": ON_0}, "its device declares `gpus`; leave them out"),
        (
            {"devices": [GPU_0, {"name": "pair", "memory_gb": 90, "gpus": [1, 2]}]},
            {"large": {"device": "any"}, "small": ON_0},
            "'gpu0' or 'pair' have different numbers of GPUs",
        ),
        ({"devices": [GPU_0, {**GPU_0, "name": "gpu1"}]}, {}, "GPU 0 is named twice, by 'gpu0' and 'gpu1'"),
        ({"devices": [GPU_0, {**GPU_0, "gpus": [1]}]}, {}, "the name 'gpu0' is already used"),
        ({"devices": [{**GPU_0, "name": "any"}]}, {}, "the name 'any' stands for all devices"),
        (devices(50), {"large": {"memory_gb": None}}, "needs memory_gb"),
        (
            devices(50),
            {"large": {"stand_in": "smal"}},
            "the stand-in 'smal' is not another expert; known: small, large",
        ),
        (devices(50), {"large": {"stand_in": "large"}}, "is not another expert"),
        (
            devices(50),
            {"large": {"runtime": "transformers", "sleep_level": 1}},
            "transformers servers cannot sleep at level 1; remove it",
        ),
        (
            devices(50),
            {"large": {"runtime": "llama.cpp", "sleep_level": 2}},
            "llama.cpp servers cannot sleep at level 2",
        ),
        (devices(50), {"large": {"runtime": "ollama", "sleep_level": 1}}, "cannot sleep at level 1; write 2"),
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ollama", "qwen", "http://127.0.0.1:11434/v1"), ("ollama", "qwen:latest", "http://localhost:11434/v1/")),
        (("ollama", "qwen", "http://[::1]:11434/v1"), ("ollama", "qwen", "http://[0:0:0:0:0:0:0:1]:11434/v1")),
        (("vllm", "m", {"max_model_len": 8, "seed": 1}), ("vllm", "m", {"seed": 1, "--max-model-len": 8})),
    ],
)
def test_experts_of_one_server_need_its_memory_once_and_one_device(
    tmp_path: Path, one: tuple[str, str, Any], other: tuple[str, str, Any]
) -> None:
    def experts(*placed: str) -> list[dict[str, Any]]:
        return [
            {
                "name": f"e{number}",
                "runtime": runtime,
                "model": model,
                "memory_gb": 10 - number,
                "pinned": True,
                "device": device,
                "options" if runtime == "vllm" else "base_url": more,
            }
            for number, (device, (runtime, model, more)) in enumerate(zip(placed, (one, other), strict=True))
        ]

    general = {"assignment": {"general": "e0"}, "budget": {"memory_gb": 10}}
    found = declared(tmp_path, residency=devices(10), experts=experts("gpu0", "gpu0"), **general)
    assert found.experts[0].server_key == found.experts[1].server_key
    with pytest.raises(ConfigError, match="'e1' is on 'gpu1' and shares the server of 'e0', which is on 'gpu0'"):
        declared(tmp_path, residency=devices(10, 10), experts=experts("gpu0", "gpu1"), **general)


def test_the_order_in_which_experts_of_one_server_name_its_devices_does_not_matter(tmp_path: Path) -> None:
    for small, large in ((["gpu0", "gpu1"], ["gpu1", "gpu0"]), ("any", ["gpu1", "gpu0"])):
        found = declared(
            tmp_path, residency=gpus(50, 50), small={"device": small}, large={"model": "m", "device": large}
        )
        assert [found.devices_of(expert) for expert in found.experts] == [("gpu0", "gpu1")] * 2
        one, other = found.hosted_experts
        assert one.server_key == other.server_key


def test_an_ollama_that_runs_already_may_be_on_a_device_with_gpus_and_gets_none(tmp_path: Path) -> None:
    small = {"device": "gpu0", "runtime": "ollama", "base_url": "http://127.0.0.1:11434/v1"}
    found = declared(tmp_path, residency=gpus(50, 50), small=small, large={"device": "gpu1"})
    assert [expert.gpus for expert in found.hosted_experts] == [(), (1,)]
    specs, _ = local_servers(found.hosted_experts, cache=tmp_path, logs=tmp_path, python=_python(tmp_path))
    assert "CUDA_VISIBLE_DEVICES" not in specs[0].env


def test_with_residency_the_experts_may_need_more_memory_than_the_device_has(tmp_path: Path) -> None:
    found = declared(tmp_path, residency=devices(45), large={"stand_in": "small"}, budget={"memory_gb": 45})
    assert found.devices_of(found.experts[1]) == ("gpu0",)


def _python(folder: Path) -> Path:
    """Return the path of a Python beside which vLLM is installed."""
    command = folder / "bin" / "vllm"
    command.parent.mkdir()
    command.touch(mode=0o755)
    return command.with_name("python")


def test_a_server_of_several_devices_is_on_the_one_with_most_memory_left_and_confined_to_it(tmp_path: Path) -> None:
    devices = [{"name": name, "memory_gb": 50, "gpus": pair} for name, pair in (("x", [0, 1]), ("y", [2, 3]))]
    large = {"device": "any", "model": "org/large"}
    small = {"device": "y", "model": "org/small"}
    found = declared(tmp_path, residency={"devices": devices}, large=large, small=small)
    specs, _ = local_servers(
        found.hosted_experts, cache=tmp_path, logs=tmp_path, python=_python(tmp_path), base_folder=tmp_path
    )
    assert all(" ".join(spec.argv).endswith("--tensor-parallel-size 2") for spec in specs)
    planned = plan_devices(found, specs)
    seen = {
        device.name: {server.key: server.spec.env["CUDA_VISIBLE_DEVICES"] for server in device.servers}
        for device in planned
    }
    assert seen == {"x": {"large": "0,1"}, "y": {"small": "2,3"}}
    assert {name: device.name for device in planned for name in device.experts} == {"large": "x", "small": "y"}


def test_neither_residency_nor_replicas_change_the_digest(tmp_path: Path) -> None:
    plain = declared(tmp_path, residency=None).digest
    assert declared(tmp_path, residency=devices(60), large={"pinned": True}).digest == plain
    assert declared(tmp_path, residency=None, large={"replicas": 2}).digest == plain
