"""A declaration for listed models, which the loader accepts. Only the loader does I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.cli.init import (
    PROVIDERS,
    Model,
    Source,
    declaration,
    default_models,
    demo_declaration,
    endpoint,
    in_environment,
    named,
    read_models,
    template,
)
from coe.errors import ConfigError
from coe.registry import Registry, load, yaml_source
from tests.init import model_lists

ROOT = Path(__file__).parents[2]
DAY = 86400.0
OPENAI, ANTHROPIC = PROVIDERS[:2]


def entry(output: float, mode: str = "chat", **more: Any) -> dict[str, Any]:
    return {"mode": mode, "input_cost_per_token": output / 4e6, "output_cost_per_token": output / 1e6} | more


TABLE: dict[str, Any] = {
    "huge": entry(600),
    "large": entry(12, max_input_tokens=400000, supports_function_calling=True, supports_vision=True),
    "large-older": entry(10),
    "small": entry(0.4, cache_read_input_token_cost=0.025e-6, max_input_tokens=128000, supports_response_schema=True),
    "small-preview": entry(0.4),
    "ancient": entry(2),
    "embedder": entry(0.1, "embedding"),
    "claude-haiku-4-5": entry(5),
}


def found(*names: str, source: Source = OPENAI) -> list[Model]:
    """The models that chat, each a day younger than the one before."""
    page = {"data": [{"id": name, "created": 1.7e9 + index * DAY} for index, name in enumerate(names)]}
    return [one for one in read_models(orjson.dumps(page), source, TABLE) if one.is_chat]


def ids(chosen: Sequence[Model]) -> list[str]:
    return [one.id for one in chosen]


def loaded(text: str, tmp_path: Path, **environ: str) -> Registry:
    path = tmp_path / "experts.yaml"
    path.write_text(text)
    return load(path, environ=environ)


def written(chosen: Sequence[Model]) -> str:
    return declaration(named(chosen))


# ------------------------------------------------------------------------------------------------- selection


def test_the_default_is_the_newest_model_of_each_price_class() -> None:
    offered = found("ancient", "large-older", "large", "small", "small-preview", "huge", "embedder")
    assert ids(default_models(offered)) == ["ancient", "large", "small"]
    assert ids(default_models(found(*(f"free-{number}" for number in range(9))))) == [f"free-{n}" for n in range(4, 9)]


@pytest.mark.parametrize(
    "name",
    ["text-embedding-3", "whisper-1", "tts-1", "gpt-4o-audio", "dall-e-3", "bge-m3", "rerank-2", "llama-guard-3"],
)
def test_models_for_other_uses_are_no_candidates(name: str) -> None:
    assert ids(found(name, "embedder", "plain")) == ["plain"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama3.1:8b", 8.0),
        ("Qwen/Qwen3-30B-A3B-Instruct", 3.0),
        ("gemma-3-4b-it", 4.0),
        ("SmolLM2-0.1b", 0.1),
        ("mixtral-8x7b", None),
        ("gpt-5-mini", None),
        ("bge-100bit", None),
    ],
)
def test_active_parameters_come_from_the_name(name: str, size: float | None) -> None:
    assert Model(OPENAI, name).active_parameters_b == size


# ------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("http://[::1]:8000/", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_without_a_path_gets_the_usual_one(url: str, address: str) -> None:
    assert endpoint(url).base_url == address


@pytest.mark.parametrize(
    "url",
    ["", "ftp://h", "http://", "http://h:99999", "http://u:secret@h/v1", "https://h/v1?key=secret", "http://h#secret"],
)
def test_addresses_with_credentials_or_without_a_host_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        endpoint(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("openai", "OPENAI_BASE_URL OPENAI_API_BASE"),
        ("anthropic", "ANTHROPIC_BASE_URL ANTHROPIC_API_BASE"),
        ("gemini", "GEMINI_API_BASE GOOGLE_GEMINI_BASE_URL"),
        ("mistral", "MISTRAL_API_BASE"),
        ("groq", "GROQ_API_BASE GROQ_BASE_URL"),
        ("deepseek", "DEEPSEEK_API_BASE"),
        ("xai", "XAI_API_BASE"),
        ("openrouter", "OPENROUTER_API_BASE"),
        ("together", "TOGETHER_AI_API_BASE TOGETHER_BASE_URL"),
        ("fireworks", "FIREWORKS_API_BASE FIREWORKS_AI_API_BASE FIREWORKS_BASE_URL"),
        ("cerebras", "CEREBRAS_API_BASE CEREBRAS_BASE_URL"),
    ],
)
def test_a_key_goes_only_to_the_address_that_the_providers_own_variables_give(name: str, variables: str) -> None:
    for variable in variables.split():
        environ = {f"{name.upper()}_API_KEY": "k", variable: "http://proxy.test/v1"}
        assert [one.base_url for one in in_environment(environ)] == ["http://proxy.test/v1"]
        with pytest.raises(ConfigError, match=variable):
            in_environment(environ | {variable: "ftp://h"})


def test_the_declaration_loads_with_what_is_known(tmp_path: Path) -> None:
    text = written([*found("large", "small", "unheard-of"), *found("claude-haiku-4-5", source=ANTHROPIC)])
    registry = loaded(text, tmp_path, OPENAI_API_KEY="value-1", ANTHROPIC_API_KEY="value-2")
    large, small, unknown, claude = registry.experts
    assert (large.context_length, sorted(large.capabilities)) == (400000, ["images", "tools"])
    assert (small.prices.input, small.prices.output, small.prices.cached_input) == (0.1, 0.4, 0.025)
    assert (unknown.context_length, sorted(unknown.capabilities)) == (4096, ["json_schema", "tools"])
    assert (claude.runtime, claude.model, claude.base_url) == ("litellm", "anthropic/claude-haiku-4-5", None)
    assert "${OPENAI_API_KEY}" in text
    assert (registry.assignment, registry.general_expert) == ({}, "large")  # a plan decides all, `general` too
    assert registry.category_names == tuple(
        one["name"] for one in yaml_source.parse(template(), "t").value["categories"]
    )
    for remark in ("unknown; correct it", "capabilities: auto   # unknown", "# prices: {input: 0", "litellm's table"):
        assert remark in text


def test_servers_of_the_users_own_have_no_prices(tmp_path: Path) -> None:
    page, own = orjson.dumps({"data": [{"id": "large"}, *model_lists.VLLM]}), endpoint("http://h:8000")
    coder, large = loaded(written(read_models(page, own, TABLE)), tmp_path).experts  # the largest comes first
    assert (coder.context_length, coder.active_parameters_b, coder.prices.output) == (32768, 7, 0)
    assert not coder.local  # a remark only: the address may be that of a proxy
    assert (large.context_length, sorted(large.capabilities), large.prices.output) == (4096, ["images", "tools"], 0)
    hosted = read_models(page, endpoint("http://h:8000", "K"), TABLE)
    guessed = loaded(written(hosted), tmp_path, K="k").expert("large")
    assert (guessed.context_length, guessed.prices.output) == (4096, 0)  # it may only share the name


@pytest.mark.parametrize("name", ["1.5", "null", "on", "12:30", "@cf/meta/llama", "a:", "/m/a.gguf"])
def test_names_that_yaml_reads_as_something_else_are_quoted(name: str, tmp_path: Path) -> None:
    (expert,) = loaded(written(found(name)), tmp_path, OPENAI_API_KEY="x").experts
    assert expert.model == name


def test_experts_of_equal_names_stay_apart(tmp_path: Path) -> None:
    other = endpoint("http://h:1/v1")
    chosen = [*found("a/m", "b/m", "auto", "c/m"), *found("d/m", source=other), *found("x" * 90, "x" * 91)]
    names = loaded(written(chosen), tmp_path, OPENAI_API_KEY="x").expert_names
    assert {"m", "m-2", "m-3", "m-4", "model"} <= set(names)
    assert len(set(names)) == 7


def test_the_demo_is_the_declaration_of_the_repository(tmp_path: Path) -> None:
    assert template() == (ROOT / "experts.yaml").read_text()
    assert loaded(demo_declaration(), tmp_path).expert_names == ("coder", "analyst", "writer", "generalist")
    assert "$schema" not in demo_declaration()
    assert "docs/" not in demo_declaration()
