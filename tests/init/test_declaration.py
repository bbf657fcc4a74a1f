"""A declaration for listed models, which the loader accepts. Only the loader does I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.cli.init.declaration import declaration, demo, named, scalar, strongest, template
from coe.cli.init.listing import ListedModel, Listing, read_models
from coe.cli.init.selection import Candidate, candidates, default_models
from coe.cli.init.sources import (
    LOCAL_SERVERS,
    PROVIDERS,
    Source,
    endpoint,
    in_environment,
    provider,
    with_keys,
)
from coe.errors import ConfigError
from coe.registry import Registry, load, yaml_source
from tests.init import model_lists

ROOT = Path(__file__).parents[2]
TODAY = "2026-06-01"
DAY = 86400.0
OPENAI, ANTHROPIC = PROVIDERS[:2]


def entry(output: float, mode: str = "chat", **more: Any) -> dict[str, Any]:
    return {"mode": mode, "input_cost_per_token": output / 4e6, "output_cost_per_token": output / 1e6} | more


TABLE: dict[str, Any] = {
    "huge": entry(600),
    "large": entry(12, max_input_tokens=400000, supports_function_calling=True, supports_vision=True),
    "large-2026-01-01": entry(12),
    "large-older": entry(10),
    "small": entry(0.4, cache_read_input_token_cost=0.025e-6, max_input_tokens=128000, supports_response_schema=True),
    "small-preview": entry(0.4),
    "retired": entry(2, deprecation_date="2026-05-31"),
    "ancient": entry(2),
    "embedder": entry(0.1, "embedding"),
    "claude-haiku-4-5": entry(5),
}


def listing(*models: ListedModel | str, source: Source = OPENAI) -> Listing:
    """The models, each a day younger than the one before."""
    full = [
        replace(one if isinstance(one, ListedModel) else ListedModel(one), created=1.7e9 + index * DAY)
        for index, one in enumerate(models)
    ]
    return Listing(source, source.base_urls[0], tuple(full))


def found(*models: ListedModel | str, source: Source = OPENAI) -> list[Candidate]:
    return candidates(listing(*models, source=source), TABLE)


def ids(chosen: Sequence[Candidate]) -> list[str]:
    return [one.listed.id for one in chosen]


def loaded(text: str, tmp_path: Path, **environ: str) -> Registry:
    path = tmp_path / "experts.yaml"
    path.write_text(text)
    return load(path, environ=environ)


def written(chosen: Sequence[Candidate]) -> str:
    experts = named(chosen)
    return declaration(experts, general=strongest(experts))


# ------------------------------------------------------------------------------------------------- selection


def test_the_default_is_the_newest_model_of_each_price_class() -> None:
    offered = found(
        *(
            "ancient",
            "large-older",
            "large",
            "large-2026-01-01",
            "small",
            "small-preview",
            "retired",
            "huge",
            "embedder",
        )
    )
    assert ids(default_models(offered, today=TODAY)) == ["ancient", "large", "small"]


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
    assert Candidate(OPENAI, "http://x/v1", ListedModel(name), None).active_parameters_b == size


# ------------------------------------------------------------------------------------------------- sources


def test_variables_are_applied_to_their_source() -> None:
    sources = [endpoint("http://a.test:1/v1"), provider("openai", {})]
    keyed = with_keys(sources, ["openai=MINE", "http://a.test:1/v1=ITS"], {"MINE": "1", "ITS": "2"})
    assert [one.key_env for one in keyed] == ["ITS", "MINE"]
    assert with_keys(sources[:1], ["MINE"], {"MINE": "1"})[0].key_env == "MINE"


@pytest.mark.parametrize("text", ["sk-secret-123", "Mx9secretsecret", "openai=Mx9secretsecret", "", "openai="])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_keys([provider("openai", {})], [text], {})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("localhost:8000", ("http://localhost:8000/v1", "http://localhost:8000")),
        ("http://h/v1/", ("http://h/v1",)),
        ("https://h/proxy", ("https://h/proxy/v1", "https://h/proxy")),
        ("https://h/v1beta/openai", ("https://h/v1beta/openai",)),
        ("http://[::1]:8000", ("http://[::1]:8000/v1", "http://[::1]:8000")),
    ],
)
def test_an_address_is_tried_with_and_without_the_version(url: str, addresses: tuple[str, ...]) -> None:
    assert endpoint(url).base_urls == addresses


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
        environ = {provider(name, {}).key_env: "k", variable: "http://proxy.test/v1"}
        assert [one.base_urls for one in in_environment(environ)] == [("http://proxy.test/v1",)]
        with pytest.raises(ConfigError, match=variable):
            in_environment(environ | {variable: "ftp://h"})


def test_two_addresses_of_one_key_are_refused() -> None:
    environ = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_API_BASE": "http://a.test", "ANTHROPIC_BASE_URL": "http://a.test/"}
    assert in_environment(environ)[0].base_urls[0] == "http://a.test/v1"
    with pytest.raises(ConfigError, match="ANTHROPIC_BASE_URL and ANTHROPIC_API_BASE are different"):
        in_environment(environ | {"ANTHROPIC_API_BASE": "http://b.test"})


def test_the_declaration_loads_with_what_is_known(tmp_path: Path) -> None:
    text = written([*found("large", "small", "unheard-of"), *found("claude-haiku-4-5", source=ANTHROPIC)])
    registry = loaded(text, tmp_path, OPENAI_API_KEY="value-1", ANTHROPIC_API_KEY="value-2")
    large, small, unknown, claude = registry.experts
    assert (large.context_length, sorted(large.capabilities)) == (400000, ["images", "tools"])
    assert (small.prices.input, small.prices.output, small.prices.cached_input) == (0.1, 0.4, 0.025)
    assert (unknown.context_length, sorted(unknown.capabilities)) == (8192, ["json_schema", "tools"])
    assert (claude.runtime, claude.model, claude.base_url) == ("litellm", "anthropic/claude-haiku-4-5", None)
    assert "${OPENAI_API_KEY}" in text
    assert (registry.assignment, registry.general_expert) == ({}, "large")  # a plan decides all, `general` too
    assert registry.category_names == tuple(
        one["name"] for one in yaml_source.parse(template(), "t").value["categories"]
    )
    for remark in ("unknown; correct it", "capabilities: auto   # unknown", "# prices: {input: 0", "litellm's table"):
        assert remark in text


def test_servers_of_the_users_own_have_no_prices_but_what_they_report(tmp_path: Path) -> None:
    models, _ = read_models(orjson.dumps({"data": [*model_lists.VLLM, {"id": "large"}]}))
    own = Listing(endpoint("http://h:8000"), "http://h:8000/v1", models)
    large, coder = loaded(written(candidates(own, TABLE)), tmp_path).experts  # the strongest comes first
    assert (coder.context_length, coder.active_parameters_b, coder.prices.output) == (32768, 7, 0)
    assert not coder.local  # a remark only: the address may be that of a proxy
    assert (large.context_length, sorted(large.capabilities), large.prices.output) == (8192, ["images", "tools"], 0)
    hosted = Listing(replace(own.source, key_env="K"), own.base_url, models)
    guessed = loaded(written(candidates(hosted, TABLE)), tmp_path, K="k").expert("large")
    assert (guessed.context_length, guessed.prices.output) == (8192, 0)  # it may only share the name


def test_what_a_server_does_not_report_is_its_default_with_a_remark(tmp_path: Path) -> None:
    models, _ = read_models(orjson.dumps({"data": [*model_lists.OLLAMA, *model_lists.LLAMA_CPP]}))
    text = written(candidates(Listing(LOCAL_SERVERS[0], "http://h/v1", models), TABLE))
    assert sorted(expert.context_length for expert in loaded(text, tmp_path).experts) == [4096, 16384]
    for remark in ("Ollama (OLLAMA_CONTEXT_LENGTH)", "as its server reports"):
        assert remark in text


@pytest.mark.parametrize(
    "name", ["1.5", "null", "on", "12:30", "@cf/meta/llama", "1e3", "a:", "0x10", "/m/a.gguf", "y", "~"]
)
def test_names_that_yaml_reads_as_something_else_are_quoted(name: str, tmp_path: Path) -> None:
    assert yaml_source.parse(f"a: {scalar(name)}", "t").value == {"a": name}
    (expert,) = loaded(written(found(name)), tmp_path, OPENAI_API_KEY="x").experts
    assert expert.model == name


def test_experts_of_equal_names_stay_apart(tmp_path: Path) -> None:
    other = endpoint("http://h:1/v1")
    chosen = [*found("a/m", "b/m", "auto", "c/m"), *found("d/m", source=other), *found("x" * 90, "x" * 91)]
    names = loaded(written(chosen), tmp_path, OPENAI_API_KEY="x").expert_names
    assert {"m", "m-openai", "auto-openai", "m-2", "m-h-1"} <= set(names)
    assert len(set(names)) == 7


def test_the_demo_is_the_declaration_of_the_repository(tmp_path: Path) -> None:
    assert template() == (ROOT / "experts.yaml").read_text()
    assert loaded(demo(), tmp_path).expert_names == ("coder", "analyst", "writer", "generalist")
    assert "$schema" not in demo()
    assert "docs/" not in demo()
