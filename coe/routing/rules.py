"""The rules of experts.yaml: which one applies to a request, and what it does to the prediction. Pure.

A rule without a language condition is known before classification. So `Rules.matching` returns the names of the rules
that may apply: some that depend on the language, then at most one that does not. `Rules.apply` selects the first of
them that holds for a prediction.

A rule with `only_local` fails closed: a value that cannot be read whole, within the bounds below, meets its condition.
It does not meet a condition of another rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.core import Chat, Prediction
from coe.registry import Registry
from coe.registry.rules import Conditions, RuleSpec, apis_of
from coe.registry.sections import matches
from coe.routing.message_parts import tool_names

MAX_NAME_CHARACTERS = 256
"""Characters of a tool's name, of `model` and of the user agent that are compared with patterns."""
MAX_SYSTEM_CHARACTERS = 100_000
"""Characters of the system prompt that are searched."""
RULE = "rule"
"""Stage of a prediction whose category a rule sets."""


@dataclass(frozen=True)
class RequestFacts:
    """Facts that conditions are about. `model` is as the client sent it, and `client` the user agent.

    `key` and `tenant` are empty without API keys. `estimate` returns the input tokens of a chat, and the most that
    they can be. With `routed` False, the client chose the expert.
    """

    chat: Chat
    model: str
    estimate: Callable[[Chat], tuple[float, float]]
    client: str = ""
    key: str = ""
    tenant: str = ""
    routed: bool = True

    @cached_property
    def tools(self) -> list[str | None]:
        return list(tool_names(self.chat))

    @cached_property
    def system(self) -> tuple[str, bool]:
        """The read part of the system prompt in lower case, and whether it is all of it."""
        text = "\n".join([one.text for one in self.chat.messages if one.role in ("system", "developer")])
        return text[:MAX_SYSTEM_CHARACTERS].lower(), len(text) <= MAX_SYSTEM_CHARACTERS

    @cached_property
    def tokens(self) -> tuple[float, float]:
        return self.estimate(self.chat)


class Rules:
    """The rules of a declaration, compiled for the `categories` of a router."""

    def __init__(self, registry: Registry, categories: Sequence[str]) -> None:
        self._by_name = {rule.name: rule for rule in registry.rules}
        self._tests = [(rule, _tests_of(rule.when, unread=rule.only_local)) for rule in registry.rules]
        self.arms = {one.name: one.expert for one in registry.rules if one.expert is not None}
        """The arm of the expert or recipe that a rule names, by the name of the rule."""
        self._factors: dict[str, NDArray[np.float32]] = {}
        for rule in registry.rules:
            odds = {rule.category: 1.0} if rule.category is not None else rule.odds or {}
            default = 1.0 if rule.category is None else 0.0
            self._factors[rule.name] = np.array([odds.get(name, default) for name in categories], dtype=np.float32)

    def matching(self, facts: RequestFacts) -> tuple[str, ...]:
        """Return the names of the rules of which one may apply, in order.

        A request that is not routed has only rules with `only_local`.
        """
        names = []
        for rule, tests in self._tests:
            if (facts.routed or rule.only_local) and all(test(facts) for test in tests):
                names.append(rule.name)
                if rule.when.language is None:
                    break
        return tuple(names)

    def only_local(self, names: Sequence[str]) -> bool:
        """Return whether only local experts may receive a request with these matching rules."""
        return any(self._by_name[name].only_local for name in names)

    def needs_no_encoder(self, names: Sequence[str]) -> bool:
        """Return whether the first of the matching rules decides, whatever a better prediction is."""
        first = self._by_name[names[0]]
        return first.when.language is None and (first.category is not None or first.expert is not None)

    def apply(self, names: Sequence[str], prediction: Prediction) -> Prediction:
        """Return the prediction after the first of the matching rules that holds for its language, if any does."""
        for rule in filter(None, map(self._by_name.get, names)):
            if rule.when.language is None or prediction.language in rule.when.language:
                return self._after(rule, prediction)
        return prediction

    def _after(self, rule: RuleSpec, prediction: Prediction) -> Prediction:
        if rule.category is None and rule.odds is None:
            return replace(prediction, rule=rule.name)
        posterior, factors = prediction.probabilities, self._factors[rule.name]
        if rule.category is not None:
            certain = replace(prediction, probabilities=factors, stage=RULE, in_distribution=1.0, residual=None)
            return replace(certain, rule=rule.name, router_probabilities=posterior)
        weighted = posterior * factors
        changed = replace(prediction, probabilities=weighted / weighted.sum(), router_probabilities=posterior)
        return replace(changed, rule=rule.name)


_VALUES: Mapping[str, Callable[[RequestFacts], Sequence[str | None]]] = {
    "key": lambda facts: (facts.key, facts.tenant),
    "model": lambda facts: (facts.model,),
    "client": lambda facts: (facts.client.lower(),),
    "tools": lambda facts: facts.tools,
}
"""The values that the patterns of a condition are compared with; one of them must match. None cannot be read."""


def _tests_of(when: Conditions, *, unread: bool) -> list[Callable[[RequestFacts], bool]]:
    """Return a test for each condition but the language, those that read most of the request last. `unread` is the
    result for a value that cannot be read whole."""
    tests: list[Callable[[RequestFacts], bool]] = []
    if when.path is not None:
        apis = apis_of(when.path)
        tests.append(lambda facts: facts.chat.api in apis)
    tests += [_pattern_test(patterns, of, unread) for name, of in _VALUES.items() if (patterns := getattr(when, name))]
    if when.system is not None:
        parts = when.system
        tests.append(lambda facts: any(part in facts.system[0] for part in parts) or (unread and not facts.system[1]))
    if when.tokens is not None:
        low, high = when.tokens.limits
        tests.append(lambda facts: facts.tokens[0] <= high and low <= facts.tokens[unread])
    return tests


def _pattern_test(
    patterns: Sequence[str], values: Callable[[RequestFacts], Sequence[str | None]], unread: bool
) -> Callable[[RequestFacts], bool]:
    def test(facts: RequestFacts) -> bool:
        read = [value for value in values(facts) if value is not None and len(value) <= MAX_NAME_CHARACTERS]
        is_unread = unread and len(read) < len(values(facts))
        return is_unread or any(matches(pattern, value) for value in read for pattern in patterns)

    return test
