"""Schema of the section `rules` of experts.yaml, and its checks.

`coe.routing.rules` matches requests against the rules. The first rule that matches a request applies to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from coe.core import PATHS, Api
from coe.registry.experts import Language
from coe.registry.sections import AUTO, Count, ModelNames, Name, StrictModel, matches, one_as_list
from coe.registry.yaml_source import nearest

MAX_RULES = 100
MAX_ALTERNATIVES = 32
"""Values of one condition."""


def _in_lower_case(declared: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one.lower() for one in declared)


_Alternatives = Field(min_length=1, max_length=MAX_ALTERNATIVES)
_Pattern = Annotated[str, Field(pattern=r"^[ -~]{1,128}$")]
_OneOrMore = BeforeValidator(one_as_list, json_schema_input_type=str | list[str])
Patterns = Annotated[tuple[_Pattern, ...], _Alternatives, _OneOrMore]
"""Names, or patterns in which `*` stands for any characters."""
Factor = Annotated[float, Field(ge=0.001, le=1000)]
_Part = Annotated[str, Field(min_length=1, max_length=1000)]


class TokenRange(StrictModel):
    """Range of the estimated input tokens. Give one limit or both."""

    min: Count | None = None
    """Fewest tokens."""
    max: Count | None = None
    """Most tokens."""

    @model_validator(mode="after")
    def _check(self) -> TokenRange:
        if self.min is None and self.max is None:
            raise PydanticCustomError("tokens", "needs min or max")
        if self.limits[0] > self.limits[1]:
            raise PydanticCustomError("tokens", "min is above max, so the rule can never match")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        return self.min or 0, self.max or math.inf


class Conditions(StrictModel):
    """Conditions of a rule, of which all must hold. Of a list, one value must match. `*` stands for any characters."""

    tools: Patterns | None = None
    """Names or patterns of tools that the request declares."""
    client: Annotated[Patterns, AfterValidator(_in_lower_case)] | None = None
    """Patterns of the header user-agent, such as `claude-*`. Upper and lower case are the same."""
    key: Patterns | None = None
    """Names of API keys or tenants. A key that is issued later needs a pattern."""
    path: Patterns | None = None
    """Paths of the API, such as /v1/messages. Other paths of the same API count as this one."""
    model: Patterns | None = None
    """Values of `model` as the client sends them, such as an alias."""
    system: Annotated[tuple[_Part, ...], _Alternatives, _OneOrMore, AfterValidator(_in_lower_case)] | None = None
    """Texts that the system prompt contains. Upper and lower case are the same."""
    language: Annotated[tuple[Language, ...], _Alternatives, _OneOrMore] | None = None
    """Languages of the request by ISO 639 code. Known after classification, and not of every request."""
    tokens: TokenRange | None = None
    """Estimated input tokens, both limits included; without a stored conversation that the request continues."""

    @model_validator(mode="after")
    def _check(self) -> Conditions:
        if not any(value is not None for _, value in self):
            raise PydanticCustomError("conditions", f"needs one of {', '.join(type(self).model_fields)}")
        return self


class RuleSpec(StrictModel):
    """A rule. It needs a condition, and an action: one of `category`, `expert` and `odds`, or `only_local`, or both."""

    name: Name
    """Name of the rule, for headers and records."""
    when: Conditions
    """Conditions, of which all must hold."""
    category: str | None = None
    """Category of the request, in place of the router's prediction."""
    expert: str | None = None
    """Expert or recipe that answers if it is eligible and up. Else the request is routed as usual."""
    odds: Annotated[dict[str, Factor], Field(min_length=1)] | None = None
    """Factors of the odds of categories, 0.001 to 1000: `{code: 3}` triples p / (1 - p)."""
    only_local: bool = False
    """Only experts that run locally may receive the request. Its text is not stored in the routing log."""

    @model_validator(mode="after")
    def _check(self) -> RuleSpec:
        given = [name for name in ("category", "expert", "odds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise PydanticCustomError("actions", f"{' and '.join(given)} exclude each other; keep one")
        if not given and not self.only_local:
            raise PydanticCustomError("actions", "needs an action: category, expert, odds or only_local")
        if self.only_local and self.when.language is not None:
            message = "only_local cannot depend on language, which is an estimate; use another condition"
            raise PydanticCustomError("actions", message)
        return self


def apis_of(paths: Iterable[str]) -> frozenset[Api]:
    """Return the APIs whose path is named or matches a pattern."""
    return frozenset(api for path in paths for api, known in PATHS.items() if matches(path, known))


def condition_problems(rule: RuleSpec, models: ModelNames) -> Iterator[tuple[str, str]]:
    """Yield the conditions that no request meets, or none to which the rule's action applies, and what is wrong."""
    for path in rule.when.path or ():
        if not apis_of((path,)):
            yield "path", f"no endpoint has the path {path!r}{nearest(path, [*PATHS.values()])}"
    for name in (one for one in rule.when.model or () if "*" not in one):
        found = models.resolve(name)
        if found is None:
            yield "model", f"unknown model or alias {name!r}{nearest(name, models.names)}"
        elif found.model != AUTO and not rule.only_local:
            yield "model", f"requests for {name!r} are not routed, so only `only_local` applies to them"


def rule_notes(rules: Sequence[RuleSpec]) -> Iterator[tuple[int, str]]:
    """Yield the index of each rule that earlier ones make useless, and why; and of those that do not keep requests
    local because they come too late."""
    for index, rule in enumerate(rules):
        earlier = rules[:index]
        first = next((one for one in earlier if _implies(rule.when, one.when)), None)
        if first is not None:
            yield index, f"rule {rule.name!r} can never match: {first.name!r} matches all its requests before it"
        elif rule.only_local and (wider := [one.name for one in earlier if not one.only_local]):
            names = ", ".join(wider)
            yield index, f"rule {rule.name!r} does not keep requests local that match {names} before it; move it up"


_ANY: Mapping[str, tuple[str, ...]] = dict.fromkeys(("client", "key", "path", "model"), ("*",))
"""Conditions on what every request has, and their values in a rule without them."""


def _implies(narrow: Conditions, wide: Conditions) -> bool:
    """Return True if `wide` holds for each request for which `narrow` holds; False also where that is unclear."""
    for name in ("tools", "client", "key", "path", "model", "language", "system"):
        covers = _contains if name == "system" else matches
        if not _covered(getattr(narrow, name) or _ANY.get(name, ()), getattr(wide, name), covers):
            return False
    own, other = (one.tokens.limits if one.tokens else (0, math.inf) for one in (narrow, wide))
    return other[0] <= own[0] and own[1] <= other[1]


def _contains(part: str, text: str) -> bool:
    return part in text


def _covered(narrow: Sequence[str], wide: Sequence[str] | None, covers: Callable[[str, str], bool]) -> bool:
    """Return whether there are values, each covered by one of `wide`; True without a condition `wide`."""
    return wide is None or (bool(narrow) and all(any(covers(one, value) for one in wide) for value in narrow))
