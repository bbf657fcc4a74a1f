"""experts.yaml: what is accepted, and what each mistake says."""

from pathlib import Path

import pytest

from coe import registry
from coe.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "experts.yaml"
DIGEST = "ab" * 32
GOOD = """\
version: 1
categories:
  - {name: code, description: programs}
  - {name: general, description: the rest}
experts:
  - name: small
    model: m
    runtime: external
    base_url: http://localhost:1/v1
    api_key: ${TEST_KEY}
assignment:
  code: small
  general: small
"""


def load(tmp_path: Path, text: str, **environ: str) -> registry.Registry:
    path = tmp_path / "experts.yaml"
    path.write_text(text)
    return registry.load(path, environ={"TEST_KEY": "s3cret", **environ})


def test_the_shipped_file_is_right_and_has_the_promised_categories() -> None:
    shipped = registry.load(SHIPPED, environ={})
    assert len(shipped.experts) >= 4
    assert set(shipped.category_names) >= {"code", "math", "medicine", "law", "multilingual", "everyday", "general"}
    assert len(shipped.category_names) == 14


@pytest.mark.parametrize("section", ["", "assignment:\n", "assignment: {}\n", "assignment: {code: small}\n"])
def test_general_needs_no_assignment_and_goes_to_the_first_expert_that_supports_chat(
    tmp_path: Path, section: str
) -> None:
    vectors = "experts:\n  - {name: vectors, model: v, runtime: external, base_url: 'http://h', apis: [embeddings]}\n"
    text = GOOD.partition("assignment:")[0].replace("experts:\n", vectors) + section
    declared = load(tmp_path, text)
    assert (declared.expert_names[0], declared.general_expert) == ("vectors", "small")
    assert declared.assignment == ({"code": "small"} if "code" in section else {})


def test_the_shipped_optional_sections_show_the_defaults() -> None:
    shipped = registry.load(SHIPPED, environ={})
    for section in ("router", "policy", "limits", "access", "log"):
        assert getattr(shipped, section) == type(getattr(shipped, section))()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("    base_url:", "    base_ulr:", "experts.yaml:9: unknown key 'base_ulr'; did you mean 'base_url'?"),
        ("version: 1", "version: 1\npolcy: {}", "experts.yaml:2: unknown key 'polcy'; did you mean 'policy'?"),
        (
            "    base_url: http",
            "    replicas: 2\n    base_url: http",
            "experts.yaml:9: 'small' is not a local expert; list its replicas in base_urls",
        ),
        ("  code: small", "  code: smal", "experts.yaml:12: unknown expert 'smal'; did you mean 'small'?"),
        ("  code: small", "  cod: small", "experts.yaml:12: unknown category 'cod'; did you mean 'code'?"),
        ("{name: general", "{name: code", "experts.yaml:4: the name 'code' is already used on line 3"),
        (
            "version: 1",
            f"version: 1\naccess: {{keys: [{{name: a, sha256: {DIGEST}}}, {{name: b, sha256: {DIGEST}}}]}}",
            f"experts.yaml:2: the sha256 '{DIGEST}' is already used on line 2",
        ),
        (
            "version: 1",
            f"version: 1\naccess:\n  keys: [{{name: a, tenant: acme, sha256: {DIGEST}}},\n"
            f"    {{name: acme, sha256: {DIGEST[:-1]}0}}]",
            "experts.yaml:4: the key 'acme' would share the tenant 'acme' of other keys; declare its tenant",
        ),
        ("${TEST_KEY}", "${NO_KEY}", "experts.yaml:10: environment variable NO_KEY is not set"),
        ("${TEST_KEY}", "os.environ/NO_KEY", "experts.yaml:10: environment variable NO_KEY is not set"),
        ("version: 1", "version: 2", "experts.yaml:1: version: input should be 1"),
        (
            "    runtime: external",
            "    runtime: vlm",
            "experts.yaml:8: experts.0.runtime: input should be 'transformers'",
        ),
        (
            "    base_url: http://localhost:1/v1\n",
            "",
            "experts.yaml:6: expert 'small' is external, so it needs a base_url",
        ),
        ("runtime: external", "runtime: vllm", "experts.yaml:9: 'small' is a local expert and gets its own address"),
        ("name: small", "name: auto", "experts.yaml:6: the name 'auto' is reserved"),
        (
            "    runtime: external",
            "    apis: [embeddings]\n    runtime: external",
            "experts.yaml:14: 'small' answers 'general', so it must support the chat API",
        ),
        ("    model: m\n", "", "experts.yaml:6: experts.0.model is missing"),
        ("    model: m", "    model: m\n    model: n", "experts.yaml:8: found duplicate key"),
        (
            "    model: m",
            "    model: m\n    parameters: {x: 99999999999999999999}",
            "experts.yaml:8: parameters cannot be",
        ),
        (
            "version: 1",
            "version: 1\npolicy: {cost_weight_limits: [1, 0]}",
            "experts.yaml:2: cost_weight_limits must be",
        ),
        (
            "    model: m",
            "    model: m\n    languages: [en, gb]",
            "experts.yaml:8: experts.0.languages.1: no language that is identified; write an ISO 639 code such as en",
        ),
        ("version: 1", "version: 1\nlimits: {max_body_mb: .inf}", "experts.yaml:2: limits.max_body_mb: input should"),
        ("    model: m", "    model: m\n    parameters: {stream: true}", "experts.yaml:8: parameters may not set"),
        (
            "    runtime: external",
            "    apis: [chat, score]\n    runtime: litellm",
            "experts.yaml:8: 'small' has runtime litellm, which does not reach score; use runtime external",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_valid_name(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert any(found.startswith(problem) for found in raised.value.problems), raised.value.problems


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:99999/v1", "http://localhost:0/v1", "http://localhost:port/v1", "http://:80/v1"),
        *("http://[::1:80/v1", "http://[]:80/v1", "http://a..b/v1"),
    ],
)
def test_an_address_that_nobody_can_connect_to_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, GOOD.replace("http://localhost:1/v1", f"'{url}'"))
    assert str(raised.value).startswith("experts.yaml:9: experts.0.base_url: no host and port (1 to 65535)")
    several = f"base_urls:\n      - http://localhost:1/v1\n      - '{url}'"
    with pytest.raises(ConfigError, match=r"^experts\.yaml:11: experts\.0\.base_urls\.1: "):
        load(tmp_path, GOOD.replace("base_url: http://localhost:1/v1", several))


@pytest.mark.parametrize("key", ["", "secret\n", "geheim\u00e4"])
def test_a_key_that_no_header_can_carry_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"experts\.yaml:10: the api_key of 'small' is empty or holds"):
        load(tmp_path, GOOD, TEST_KEY=key)


def test_an_address_with_a_variable_is_judged_with_its_value(tmp_path: Path) -> None:
    text = GOOD.replace("localhost:1", "localhost:${PORT}")
    assert load(tmp_path, text, PORT="80").experts[0].base_url == "http://localhost:80/v1"
    with pytest.raises(ConfigError, match=r"^experts\.yaml:9: experts\.0\.base_url: no host and port"):
        load(tmp_path, text, PORT="99999")
    with pytest.raises(
        ConfigError, match=r"^experts\.yaml:9: environment variable PORT is not set; export it before starting$"
    ):
        load(tmp_path, text)


def test_local_experts_that_share_a_model_count_its_memory_once(tmp_path: Path) -> None:
    text = """
        version: 1
        categories: [{name: general, description: all}]
        experts:
          - {name: a, model: m, runtime: transformers, memory_gb: 3}
          - {name: b, model: m, runtime: transformers, memory_gb: 3}
          - {name: c, model: n, runtime: transformers, memory_gb: 4}
        assignment: {general: a}
        budget: {memory_gb: %s}
    """
    assert load(tmp_path, text % 7).budget.memory_gb == 7
    with pytest.raises(ConfigError, match="need 7 GB together and memory_gb allows 6"):
        load(tmp_path, text % 6)


def test_the_digest_follows_the_declaration_and_not_the_secret(tmp_path: Path) -> None:
    first = load(tmp_path, GOOD)
    assert first.digest == load(tmp_path, GOOD, TEST_KEY="other").digest
    assert first.digest == load(tmp_path, f"# a comment\n{GOOD}").digest
    assert first.digest != load(tmp_path, GOOD.replace("description: programs", "description: code")).digest
    assert first.digest != load(tmp_path, f"{GOOD}policy: {{cost_weight: 0.1}}\n").digest
    assert first.digest == load(tmp_path, f"{GOOD}policy: {{timeout: 9, max_attempts: 2}}\n").digest
    assert "s3cret" not in repr(first)


def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        registry.load(tmp_path / "none.yaml", environ={})


def test_the_cache_is_off_unless_declared_and_no_plan_depends_on_it(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).cache is None
    assert load(tmp_path, f"{GOOD}cache:\n").cache is None
    declared = load(tmp_path, f"{GOOD}cache: {{}}\n")
    assert declared.cache is not None
    assert (declared.cache.store, declared.cache.when) == ("memory", "deterministic")
    assert declared.digest == load(tmp_path, GOOD).digest
    for wrong in ("ttl: 0", "max_bytes: 10", "when: sometimes", "store: 'memcached://there'"):
        with pytest.raises(ConfigError, match=rf"experts.yaml:\d+: cache.{wrong.partition(':')[0]}"):
            load(tmp_path, f"{GOOD}cache: {{{wrong}}}\n")


ALIASES = """version: 1
operating_points: {fast: {cost_weight: 0.9}}
aliases:
  gpt-*-mini: coe/fast
  claude-*haiku*: small
  gpt-4: auto
  gpt-*: small
  claude-*: auto
  '[?]*': small
  '*': both"""


@pytest.mark.parametrize(
    ("name", "model", "cost_weight"),
    [
        ("small", "small", None),
        ("auto", "auto", None),
        ("gpt-4", "auto", None),
        ("gpt-5", "small", None),
        ("gpt-5-mini", "auto", 0.9),
        ("claude-3-5-haiku-2", "small", None),
        ("claude-opus", "auto", None),
        ("coe/fast", "auto", 0.9),
        ("coe/slow", "both", None),
        ("[?]-large", "small", None),
        ("?-large", "both", None),
        ("o" * 300, None, None),
    ],
)
def test_a_name_of_a_model_is_exact_or_that_of_the_first_pattern_that_matches(
    tmp_path: Path, name: str, model: str | None, cost_weight: float | None
) -> None:
    second = "  - {name: large, model: n, runtime: external, base_url: 'http://localhost:2/v1'}\n"
    text = GOOD.replace("assignment:", f"{second}assignment:") + "recipes: [{name: both, cascade: [small, large]}]\n"
    declared = load(tmp_path, text.replace("version: 1", ALIASES))
    found = declared.models.resolve(name)
    assert (found and (found.model, found.cost_weight)) == (model and (model, cost_weight))
    assert declared.digest == load(tmp_path, text).digest, "no plan depends on aliases"


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ("aliases: {gpt: smal}", "2: unknown model 'smal'; did you mean 'small'?"),
        ("aliases: {small: auto}", "2: 'small' is a model already, which an alias cannot replace; remove the alias"),
        ("aliases:\n  a: b\n  b: small", "3: the target 'b' is an alias itself; aliases do not chain, write a model"),
        ("aliases: {a b: auto}", "2: aliases.a b"),
        ("aliases: {gpt: coe/fst}\noperating_points: {fast: {cost_weight: 1}}", "2: unknown model 'coe/fst'; did you"),
        ("aliases: {coe/fast: auto}\noperating_points: {fast: {cost_weight: 1}}", "2: 'coe/fast' is a model already"),
        ("aliases: {auto-1: small}", "2: the name 'auto-1' is reserved for proposed recipes; choose another alias"),
        ("operating_points: {fast: {cost_weight: 2}}", "2: operating_points.fast.cost_weight: input should be less"),
        (
            f"aliases: {{{', '.join(f'a{n}: auto' for n in range(257))}}}",
            "2: aliases: dictionary should have",
        ),
    ],
)
def test_a_wrong_alias_is_named_with_its_line_and_the_remedy(tmp_path: Path, added: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, GOOD.replace("version: 1", f"version: 1\n{added}"))
    assert any(found.startswith(f"experts.yaml:{problem}") for found in raised.value.problems), raised.value.problems


_KEY = f"access: {{keys: [{{name: k, sha256: '{DIGEST}', RULE}}]}}\n"


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("experts: [smal]", "experts.yaml:14: unknown expert 'smal'; did you mean 'small'?"),
        ("experts: ['gpt-*']", "experts.yaml:14: unknown expert 'gpt-*'; known: small"),
        ("experts: [both]", "experts.yaml:14: 'both' is a recipe; name its members, which permits the recipe too"),
        ("experts: []", "experts.yaml:14: access.keys.0.experts: tuple should have at least 1 item"),
        ("only_local: true", "experts.yaml:14: the key 'k' may use no expert that runs locally"),
    ],
)
def test_a_key_whose_rule_fits_no_expert_is_refused(tmp_path: Path, rule: str, problem: str) -> None:
    text = GOOD + _KEY.replace("RULE", rule)
    if "both" in rule:
        text += "recipes: [{name: both, chain: [small, small]}]\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(problem)


def test_an_external_server_of_ones_own_is_local_by_declaration(tmp_path: Path) -> None:
    declared = GOOD.replace("    base_url:", "    local: true\n    base_url:") + _KEY.replace(
        "RULE", "only_local: true"
    )
    assert load(tmp_path, declared).experts[0].is_local
    assert load(tmp_path, declared).digest == load(tmp_path, GOOD).digest  # no plan depends on it
    with pytest.raises(
        ConfigError, match="`local` is for runtime external; 'small' has runtime litellm, of a provider"
    ):
        load(tmp_path, declared.replace("runtime: external", "runtime: litellm"))


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("runtime: openai", "not 'openai'; did you mean 'external'?"),
        ("runtime: llama-server", "did you mean 'llama.cpp'?"),
        ("runtime: vlmm", "did you mean 'vllm'?"),
        (f"runtime: {'q' * 500}", f"not {'q' * 64!r}"),
        ("runtime: external\n    capabilities: [vision]", "did you mean 'images'?"),
        ("runtime: external\n    capabilities: [json-schema]", "did you mean 'json_schema'?"),
        ("runtime: external\n    apis: [openai]", "did you mean 'chat'?"),
        ("runtime: external\n    api_base: http://h", "unknown key 'api_base'; did you mean 'base_url'?"),
        ("runtime: external\n    max_model_len: 4096", "did you mean 'context_length'?"),
        ("runtime: external\n    capabilities: tools", "expected a list, such as [a, b]"),
        ("runtime: external\n    prices: 3", "expected keys with values, such as {a: b}"),
    ],
)
def test_the_word_that_was_meant_is_named_on_its_line(tmp_path: Path, line: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, GOOD.replace("runtime: external", line))
    (problem,) = raised.value.problems
    assert problem.startswith(f"experts.yaml:{8 + line.count(chr(10))}: ")
    assert problem.endswith(hint)
