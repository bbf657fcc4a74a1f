"""Rules of experts.yaml: their checks, which one matches, and what it does to a prediction and a decision."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe import registry as declarations
from coe.core import Chat, ExpertRule, Health, Message, Prediction, RequestOptions
from coe.errors import ConfigError, RequestError
from coe.planning.problem import declared_assignment
from coe.registry import Registry
from coe.registry.permission import exclusion
from coe.registry.rules import RuleSpec, rule_notes
from coe.routing.decision import Previous, decide
from coe.routing.message_parts import MAX_TOOLS
from coe.routing.rules import MAX_NAME_CHARACTERS, MAX_SYSTEM_CHARACTERS, RequestFacts, Rules
from gateway.access.access import Caller
from gateway.access.allowance import input_range
from gateway.request.trace import with_rules
from tests.access.samples import key_of
from tests.fakes import WordRouter, registry_of

CATEGORIES = WordRouter.categories
EXTERNAL = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def facts_of(*, system: str = "", fields: dict[str, Any] | None = None, api: Any = "chat", **more: Any) -> RequestFacts:
    messages = (Message("system", system), Message("user", "hello"))
    chat = Chat("auto", messages, False, frozenset(), 5, fields or {}, api)
    return RequestFacts(chat, **{"model": "auto", "estimate": lambda chat: (100.0, 100.0), **more})


def rules_of(*declared: dict[str, Any], **changes: Any) -> Rules:
    named = [{"name": f"r{number}", **rule} for number, rule in enumerate(declared)]
    return Rules(registry_of(rules=named, **changes), CATEGORIES)


BASH = {"tools": [function("Bash")]}


@pytest.mark.parametrize(
    ("when", "facts", "matches"),
    [
        ({"tools": "Bash"}, facts_of(fields=BASH), True),
        ({"tools": ["Edit", "B*h"]}, facts_of(fields=BASH), True),
        ({"tools": "*"}, facts_of(), False),
        ({"tools": "Edit"}, facts_of(fields={"tools": [{"name": "Edit", "input_schema": {}}]}, api="messages"), True),
        ({"tools": "web_search"}, facts_of(fields={"tools": [{"type": "web_search"}]}, api="responses"), True),
        ({"tools": "Bash"}, facts_of(fields={"tools": [function("a") | {"name": "Bash"}]}), True),
        ({"tools": "Bash"}, facts_of(fields={"tools": [function("a")], "functions": [{"name": "Bash"}]}), True),
        ({"client": "Claude-*"}, facts_of(client="claude-CLI/2.0"), True),
        ({"client": "claude"}, facts_of(client="claude-cli/2.0"), False),
        ({"key": "alice"}, facts_of(key="alice", tenant="acme"), True),
        ({"key": "acme"}, facts_of(key="alice", tenant="acme"), True),
        ({"path": "/v1/chat/completions"}, facts_of(), True),
        ({"path": "/v1/images/*"}, facts_of(api="images/edits"), True),
        ({"model": "gpt-4*"}, facts_of(model="gpt-4o"), True),
        ({"system": "Contract ASSISTANT"}, facts_of(system="You are a contract assistant."), True),
        ({"system": ["x", "contract"]}, facts_of(system="You are a contract assistant."), True),
        ({"system": "hello"}, facts_of(), False),  # the user's text is not the system prompt
        ({"tokens": {"min": 100, "max": 100}}, facts_of(), True),
        ({"tokens": {"min": 101}}, facts_of(), False),
        ({"tools": "Bash", "client": "claude-*"}, facts_of(fields=BASH), False),  # all conditions must hold
        ({"tools": "Bash", "client": "claude-*"}, facts_of(fields=BASH, client="claude-cli"), True),
    ],
)
def test_a_rule_matches_if_all_its_conditions_hold(when: dict[str, Any], facts: RequestFacts, matches: bool) -> None:
    aliases = {"gpt-*": "auto"}
    keys = [key_of("alice", tenant="acme").model_dump(mode="json")]
    rules = rules_of({"when": when, "category": "code"}, aliases=aliases, access={"keys": keys})
    assert rules.matching(facts) == (("r0",) if matches else ())


LONG = "x" * (MAX_NAME_CHARACTERS - 1)
PADDED = "x" * (MAX_SYSTEM_CHARACTERS - 4)


@pytest.mark.parametrize(
    ("when", "within", "beyond"),
    [
        (
            {"tools": "x*"},
            [{"fields": {"tools": [function(LONG + "x")]}}],
            [{"fields": {"tools": [function(LONG + "xx")]}}],
        ),
        (
            {"tools": "x"},
            [{"fields": {"tools": [function("a")] * (MAX_TOOLS - 1) + [function("x")]}}],
            [
                {"fields": {"tools": [function("a")] * MAX_TOOLS + [function("x")]}},
                {"fields": {"functions": [{"name": "a"}] * MAX_TOOLS + [{"name": "x"}]}},
                *({"fields": {"tools": one}} for one in ([7], [{}], [{"type": []}], [{"function": {"name": 7}}], "x")),
                *({"fields": {"tools": [{"type": one, "tools": []}]}} for one in ("namespace", "mcp")),
            ],
        ),
        ({"client": "*y"}, [{"client": LONG + "y"}], [{"client": LONG + "xy"}]),
        ({"key": "*y"}, [{"key": LONG + "y"}, {"tenant": LONG + "y"}], [{"key": LONG + "xy"}, {"tenant": LONG + "xy"}]),
        ({"model": "*y"}, [{"model": LONG + "y"}], [{"model": LONG + "xy"}]),
        ({"system": "mark"}, [{"system": PADDED + "mark"}], [{"system": PADDED + "xmark"}]),
        (
            {"tokens": {"min": 101}},
            [{"estimate": lambda chat: (101.0, 101.0)}],
            [
                {"estimate": input_range, "fields": {"previous_response_id": "resp_1"}},
                {"estimate": input_range, "fields": {"input": [{"type": "item_reference", "id": "msg_1"}]}},
            ],
        ),
        ({"path": "/v1/messages"}, [{"api": "messages"}], []),  # has no bound
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_beyond_its_bound_keeps_a_request_local_and_meets_no_other_rule(
    when: dict[str, Any], within: list[dict[str, Any]], beyond: list[dict[str, Any]]
) -> None:
    by_action = [rules_of({"when": when, **action}) for action in ({"category": "code"}, {"only_local": True})]
    rows = [*((one, [True, True]) for one in within), *((one, [False, True]) for one in beyond), ({}, [False, False])]
    for facts, matches in rows:
        assert [bool(rules.matching(facts_of(**facts))) for rules in by_action] == matches, facts


def test_the_first_rule_wins_and_those_before_it_that_depend_on_the_language() -> None:
    german, long, any_path = {"language": "de"}, {"tokens": {"min": 1000}}, {"path": "*"}
    rules = rules_of(*({"when": when, "category": "art"} for when in (long, german, any_path, any_path)))
    assert rules.matching(facts_of()) == ("r1", "r2")
    posterior = np.array([0.2, 0.2, 0.6], dtype=np.float32)
    for language, name in (("de", "r1"), ("en", "r2"), ("und", "r2"), ("", "r2")):
        assert rules.apply(("r1", "r2"), Prediction(posterior, "fast", language=language)).rule == name
    assert not rules.apply(("r1",), Prediction(posterior, "fast", language="en")).rule


def test_a_request_for_a_named_expert_has_only_rules_that_keep_it_local() -> None:
    rules = rules_of({"when": {"path": "*"}, "expert": "coder"}, {"when": {"path": "*"}, "only_local": True})
    assert rules.matching(facts_of(routed=False)) == ("r1",)
    assert rules.matching(facts_of()) == ("r0",)


def test_odds_are_multiplied_and_a_category_is_certain() -> None:
    rules = rules_of(
        {"when": {"path": "*"}, "odds": {"code": 3.0}},
        {"when": {"path": "*"}, "category": "art"},
        {"when": {"path": "*"}, "expert": "coder"},
    )
    before = Prediction(np.array([0.25, 0.0, 0.75], dtype=np.float32), "fast", 0.5, language="en")
    shifted, certain, named = (rules.apply((name,), before) for name in ("r0", "r1", "r2"))
    np.testing.assert_allclose(shifted.probabilities, [0.5, 0.0, 0.5], atol=1e-6)
    assert (certain.probabilities.tolist(), certain.best, certain.confidence) == ([0, 1, 0], 1, 1.0)
    assert (shifted.in_distribution, certain.language) == (0.5, "en")
    assert shifted.router_probabilities is certain.router_probabilities is before.probabilities
    assert (named.probabilities is before.probabilities, named.rule) == (True, "r2")
    assert [rules.needs_no_encoder((name,)) for name in ("r0", "r1", "r2")] == [False, True, True]


def choose(
    *, health: dict[str, Health] | None = None, rule: ExpertRule | None = None, named: str = "painter", **changes: Any
) -> tuple[str, str, str]:
    """The expert, the reason and the avoided expert of a chat about code, for which a rule names an expert."""
    declared = registry_of(**changes)
    decision = decide(
        Chat("auto", (Message("user", "code"),), False, frozenset(), 4, {}),
        Prediction(np.array([1, 0, 0], dtype=np.float32), "fast", rule="r"),
        registry=declared,
        assignment=declared_assignment(declared, CATEGORIES),
        health_by_expert=health or {},
        rule=rule,
        named=named,
        previous=Previous("generalist", continues=True),
    )
    assert decision.rule == "r"
    assert len(set(decision.candidates)) == len(decision.candidates) == len(decision.utility)
    return decision.expert, decision.reason, decision.fallback_from


def test_a_named_expert_answers_if_it_is_eligible_and_up() -> None:
    down, full = Health(up=False), Health(load=2.0)
    assert choose() == ("painter", "rule", "")
    assert choose(health={"painter": full}) == ("painter", "rule", "")
    assert choose(health={"painter": down}) == ("coder", "fallback", "painter")
    assert choose(health=dict.fromkeys(("coder", "painter", "generalist"), down)) == ("painter", "rule", "")
    assert choose(rule=ExpertRule("k", ("coder", "generalist"))) == ("generalist", "sticky", "")
    recipe = {"name": "both", "cascade": ["coder", "painter"]}
    assert choose(recipes=[recipe], named="both") == ("both", "rule", "")
    assert choose(recipes=[recipe], named="both", rule=ExpertRule("k", ("coder",))) == ("coder", "routed", "")


def random_rule(number: int, chance: random.Random) -> dict[str, Any]:
    action: dict[str, Any] = chance.choice(
        [
            {"expert": chance.choice(("coder", "painter", "generalist", "both"))},
            {"category": chance.choice(CATEGORIES)},
            {"odds": {chance.choice(CATEGORIES): chance.choice((0.001, 3, 1000))}},
            {"only_local": True},
        ]
    )
    condition = chance.choice(({"path": "*"}, {"system": "x"}, {"tools": "*"}, {"key": "*"}, {"language": "de"}))
    local = {"only_local": True} if "language" not in condition and chance.random() < 0.3 else {}
    if action == {"only_local": True} and "language" in condition:
        condition = {"path": "*"}
    return {"name": f"r{number}", "when": condition, **action, **local}


def test_no_rule_widens_what_a_key_or_header_permits() -> None:
    chance = random.Random(5)
    experts = [
        {"name": "coder", **EXTERNAL, "local": True, "capabilities": ["tools"]},
        {"name": "painter", **EXTERNAL},
        {"name": "generalist", **EXTERNAL},
    ]
    recipes = [{"name": "both", "cascade": ["coder", "painter"]}]
    applied, decided = 0, 0
    for _ in range(400):
        declared = registry_of(
            experts=experts, recipes=recipes, rules=[random_rule(n, chance) for n in range(chance.randint(1, 4))]
        )
        rules, assignment = Rules(declared, CATEGORIES), declared_assignment(declared, CATEGORIES)
        for _ in range(10):
            permitted = chance.choice((None, ("coder",), ("painter", "gen*"), ("generalist",), ("*",)))
            rule = chance.choice((None, ExpertRule("k", permitted, chance.random() < 0.3)))
            chat = facts_of(system=chance.choice(("", "x")), fields=chance.choice(({}, BASH))).chat
            chat = replace(chat, model=chance.choice(("auto", "auto", "coder", "painter")))
            before = RequestOptions(rule=rule)
            options = with_rules(chat, before, rules, {}, caller=Caller("k", "t"), model=chat.model)
            posterior = np.array(chance.choice(((1, 0, 0), (0.2, 0.3, 0.5))), dtype=np.float32)
            prediction = rules.apply(options.rules, Prediction(posterior, "fast", language=chance.choice(("de", "en"))))
            if (limited := options.rule) is not None and rule is not None:
                assert limited.experts == rule.experts
                assert limited.only_local >= rule.only_local
            try:
                decision = decide(
                    chat,
                    prediction,
                    registry=declared,
                    assignment=assignment,
                    rule=limited,
                    named=rules.arms.get(prediction.rule, ""),
                )
            except RequestError:
                continue
            applied, decided = applied + bool(decision.rule), decided + 1
            for name in decision.candidates:
                assert rule is None or not exclusion(rule, declared.arm(name))
                assert not rules.only_local(options.rules) or not exclusion(
                    ExpertRule(only_local=True), declared.arm(name)
                )
    assert min(applied, decided - applied) > 200


DECLARED = """\
version: 1
categories: [{name: code, description: c}, {name: law, description: l}, {name: general, description: g}]
experts: [{name: small, model: m, runtime: external, base_url: 'http://h'}]
aliases: {gpt-*: auto, fixed: small}
access: {keys: [{name: legal, tenant: acme, sha256: '%s'}]}
rules:
""" % ("0" * 64)


def load(rules: str) -> Registry:
    return declarations.load_text(DECLARED + rules, "experts.yaml", environ={})


def test_rules_name_tenants_patterns_and_aliases_and_no_plan_depends_on_them() -> None:
    rule = "  - {name: a, when: {key: [acme, issued-*], model: ['gpt-4*', gpt-5, 'f*'], path: /v1/*}, expert: small}"
    assert load(rule).digest == load("").digest


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("when: {path: /v1/chat/completion}, category: law", "no endpoint has the path '/v1/chat/completion'; did you"),
        (
            "when: {key: legl}, category: law",
            "unknown API key or tenant (keys issued later need a pattern) 'legl'; did",
        ),
        ("when: {model: gtp}, category: law", "unknown model or alias 'gtp'; did you mean 'gpt-*'?"),
        ("when: {model: fixed}, category: law", "requests for 'fixed' are not routed, so only `only_local` applies"),
        ("when: {path: '*'}, expert: smal", "unknown expert or recipe 'smal'; did you mean 'small'?"),
        ("when: {}, category: law", "rules.0.when: needs one of tools, client, key, path, model, system, language"),
        (
            f"when: {{tools: [{', '.join('a' * 33)}]}}, category: law",
            "rules.0.when.tools: tuple should have at most 32",
        ),
        ("when: {path: '*'}", "rules.0: needs an action: category, expert, odds or only_local"),
        ("when: {language: de}, only_local: true", "rules.0: only_local cannot depend on language"),
        (
            "when: {path: '*'}, category: law}\n  - {name: a, when: {path: '*'}, category: law",
            "the name 'a' is already",
        ),
    ],
)
def test_a_wrong_rule_is_named_with_its_line_and_the_nearest_name(rule: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(f"  - {{name: a, {rule}}}")
    line = 8 if "\n" in rule else 7
    assert [one for one in raised.value.problems if one.startswith(f"experts.yaml:{line}: {problem}")], raised.value


def test_a_rule_that_keeps_requests_local_too_late_is_reported() -> None:
    rules = [
        RuleSpec(name="a", when={"tools": "Bash"}, only_local=True),  # type: ignore[arg-type]
        RuleSpec(name="b", when={"tools": "Edit"}, odds={"code": 3}),  # type: ignore[arg-type]
        RuleSpec(name="c", when={"system": "patient"}, only_local=True),  # type: ignore[arg-type]
    ]
    assert list(rule_notes(rules)) == [(2, "rule 'c' does not keep requests local that match b before it; move it up")]


@pytest.mark.parametrize(
    ("earlier", "later", "shadowed"),
    [
        ({"tools": ["Bash", "Edit"]}, {"tools": "Bash"}, True),
        ({"tools": "Bash"}, {"tools": ["Bash", "Edit"]}, False),
        ({"tools": "B*"}, {"tools": "Ba*"}, True),
        ({"tools": "*"}, {"client": "a"}, False),  # not every request has tools
        ({"client": "*"}, {"tools": "Bash"}, True),  # every request has a client
        ({"client": "Claude-*"}, {"client": "claude-cli*", "tools": "Bash"}, True),
        ({"client": "claude-*", "tools": "Bash"}, {"client": "claude-*"}, False),
        ({"path": "/v1/*"}, {"path": "/v1/messages"}, True),
        ({"model": "auto"}, {"path": "*"}, False),
        ({"system": "contract"}, {"system": "a Contract assistant"}, True),
        ({"system": "a contract"}, {"system": "contract"}, False),
        ({"language": ["de", "fr"]}, {"language": "de"}, True),
        ({"language": "de"}, {"tools": "Bash"}, False),
        ({"tokens": {"min": 5}}, {"tokens": {"min": 6, "max": 9}}, True),
        ({"tokens": {"min": 5}}, {"tokens": {"max": 9}}, False),
        ({"tokens": {"max": 5}}, {"tools": "Bash"}, False),
    ],
)
def test_a_rule_that_an_earlier_one_shadows_is_reported(earlier: Any, later: Any, shadowed: bool) -> None:
    rules = [RuleSpec(name=name, when=when, category="c") for name, when in (("a", earlier), ("b", later))]
    expected = [(1, "rule 'b' can never match: 'a' matches all its requests before it")] if shadowed else []
    assert list(rule_notes(rules)) == expected
