"""Findings of `coe check` about local experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import ConfigError
from coe.fleet.planning import find_problems
from coe.registry import ExpertSpec
from tests.fleet.adapters import adapter

BASE = {"name": "base", "model": "org/model", "runtime": "vllm"}


def found(folder: Path, *declared: dict[str, Any]) -> list[tuple[int, str, str]]:
    return list(find_problems([ExpertSpec.model_validate({**BASE, **one}) for one in declared], base_folder=folder))


def test_adapters_beside_their_base_are_valid(tmp_path: Path) -> None:
    adapter(tmp_path / "poet")
    options = {"max-model-len": 1024}
    assert not found(
        tmp_path,
        {"options": options, "gpus": [0, 1]},
        {"name": "poet", "adapter": "poet", "options": options, "gpus": [0, 1]},
    )


@pytest.mark.parametrize("runtime", ["transformers", "external", "litellm"])
def test_a_runtime_without_lora_accepts_no_adapter(tmp_path: Path, runtime: str) -> None:
    adapter(tmp_path / "poet")
    [(_, key, what)] = found(tmp_path, {"runtime": runtime, "adapter": "poet"})
    assert key == "adapter"
    assert what == f"`adapter` is for runtime vllm; {runtime} does not support it"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type IA3; vLLM serves LORA alone"),
        ({"use_dora": True}, "was trained with DoRA"),
        ({"r": 1024}, "has the rank 1024; vLLM serves ranks from 1 to 512"),
        ({"r": None}, "has the rank None"),
        ({"weights": False}, "holds no weights"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_rejected(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    adapter(tmp_path / "poet", **config)
    [(_, key, what)] = found(tmp_path, {"adapter": "poet"})
    assert key == "adapter"
    assert message in what


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert found(tmp_path, {"model": "./nowhere", "adapter": "gone"}, {"name": "poet", "adapter": "empty"}) == [
        (0, "model", f"model './nowhere': there is no folder {tmp_path / 'nowhere'}"),
        (0, "adapter", f"there is no folder {tmp_path / 'gone'}"),
        (
            1,
            "adapter",
            f"{tmp_path / 'empty'} has no adapter_config.json that can be read; name a folder that PEFT has saved",
        ),
    ]


@pytest.mark.parametrize(
    ("declared", "key", "message"),
    [
        ({"gpus": [1, 1]}, "gpus", "a device is named twice: [1, 1]"),
        (
            {"gpus": [0], "options": {"tensor_parallel_size": 2}},
            "gpus",
            "the options spread the model over 2 devices and `gpus` names 1",
        ),
        (
            {"runtime": "transformers", "gpus": [0]},
            "gpus",
            "`gpus` is for runtime vllm, llama.cpp, sglang, ollama; transformers does not",
        ),
        ({"options": {"lora-modules": "a=b"}}, "options", "declare an expert with `adapter` for each"),
        ({"options": {"port": 8000}}, "options", "the options may not set port; CoE does"),
        ({"adapter": "big", "options": {"max-lora-rank": 16}}, "options", "rank 64 and max-lora-rank allows 16"),
        ({"adapter": "big", "options": {"enable-lora": False}}, "options", "the options say enable-lora: false"),
    ],
)
def test_incompatible_declarations_are_rejected(
    tmp_path: Path, declared: dict[str, Any], key: str, message: str
) -> None:
    adapter(tmp_path / "big", rank_pattern={"q_proj": 64})
    [(_, where, what)] = found(tmp_path, declared)
    assert where == key
    assert message in what


def test_an_adapter_with_other_flags_than_its_base_would_load_the_model_twice(tmp_path: Path) -> None:
    adapter(tmp_path / "poet")
    [(index, key, what)] = found(
        tmp_path, {"options": {"dtype": "half"}}, {"name": "poet", "adapter": "poet"}, {"name": "x", "model": "other"}
    )
    assert (index, key) == (1, "options")
    assert what.startswith("shares the model of 'base' but not its options and gpus")


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
assignment: {general: poet}
"""
    )
    with pytest.raises(ConfigError, match=r"experts.yaml:7: 'poet': there is no folder .*/adapters/poet"):
        CliRunner().invoke(app, ["check", "--config", str(config)], catch_exceptions=False)
    adapter(tmp_path / "adapters" / "poet")
    assert CliRunner().invoke(app, ["check", "--config", str(config)]).exit_code == 0
