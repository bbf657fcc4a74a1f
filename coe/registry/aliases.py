"""Names that clients may send as `model`: `aliases` and `operating_points` of experts.yaml, and their resolution.

An alias is a name, or a pattern in which `*` stands for any characters. Precedence, highest first: a declared name; an
exact alias; the pattern with the longest prefix before its first `*`; the pattern with the most characters besides `*`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

from pydantic import Field

from coe.registry.hints import nearest
from coe.registry.sections import Probability, StrictModel
from coe.registry.yaml_source import Problems

AUTO = "auto"
"""Model name with which a client requests routing. No expert may use it."""
POINT_PREFIX = "coe/"
"""Beginning of the model name of an operating point. No declared name has a slash."""
MAX_ALIASES = 256
MAX_MODEL_CHARACTERS = 256
"""Characters of a value of `model` that is compared with patterns."""

AliasName = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
"""A model name, or a pattern with `*`: printable ASCII characters without spaces."""


class OperatingPoint(StrictModel):
    """A named trade-off between quality and cost. A client that sends `coe/NAME` as `model` is routed as with `auto`,
    at this cost weight."""

    cost_weight: Probability
    """Weight of cost against quality: 0 best quality, 1 cheapest. `policy.cost_weight_limits` does not apply to it; the
    header x-coe-cost-weight of a request overrides it."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The target of a value of `model`: `auto`, or the name of an expert or recipe.

    `cost_weight` is that of an operating point, None for others.
    """

    model: str
    cost_weight: float | None = None


class ModelNames:
    """Resolves values of `model`. `declared` are the names of experts and recipes."""

    def __init__(
        self, declared: Collection[str], aliases: Mapping[str, str], points: Mapping[str, OperatingPoint]
    ) -> None:
        self._exact = {name: ResolvedModel(name) for name in (AUTO, *declared)}
        self._exact |= {POINT_PREFIX + name: ResolvedModel(AUTO, point.cost_weight) for name, point in points.items()}
        targets = {name: self._exact[target] for name, target in aliases.items() if target in self._exact}
        self._patterns = [(name, targets[name]) for name in sorted(targets, key=_precedence) if "*" in name]
        self._exact = {name: target for name, target in targets.items() if "*" not in name} | self._exact

    @property
    def names(self) -> tuple[str, ...]:
        """All names, and the aliases that are patterns."""
        return (*self._exact, *(pattern for pattern, _ in self._patterns))

    def resolve(self, model: str) -> ResolvedModel | None:
        """Return the model that a value of `model` stands for; None if it is not known."""
        if (found := self._exact.get(model)) is not None or len(model) > MAX_MODEL_CHARACTERS:
            return found
        return next((target for pattern, target in self._patterns if matches(pattern, model)), None)


def _precedence(pattern: str) -> tuple[int, int]:
    """Return the sort key of a pattern; the smallest one wins."""
    return -len(pattern.partition("*")[0]), pattern.count("*") - len(pattern)


def matches(pattern: str, name: str) -> bool:
    """Return whether a name, or a pattern with `*`, matches a name, in linear time for each `*`."""
    if "*" not in pattern:
        return pattern == name
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def overlap(one: str, other: str) -> bool:
    """Return whether some name matches both patterns."""
    # Dynamic programming: row[end] is True if some text matches both `one` up to `char` and `other[:end]`.
    row = [not other[:end].strip("*") for end in range(len(other) + 1)]
    for char in one:
        above, row = row, [row[0] and char == "*"]
        for end, against in enumerate(other, start=1):
            either = "*" in (char, against)
            row.append((above[end] or row[-1]) if either else (above[end - 1] and char == against))
    return row[-1]


def alias_problems(
    declared: Collection[str], aliases: Mapping[str, str], points: Mapping[str, OperatingPoint]
) -> Problems:
    """Yield key paths in experts.yaml and what is wrong there."""
    models = (AUTO, *declared, *(POINT_PREFIX + name for name in points))
    if len(aliases) > MAX_ALIASES:
        yield ("aliases",), f"{len(aliases)} aliases, at most {MAX_ALIASES}; replace some by a pattern with `*`"
        return
    for name, target in aliases.items():
        if name in models:
            yield ("aliases", name), f"{name!r} is a model already, which an alias cannot replace; remove the alias"
        if target in models:
            continue
        if target in aliases:
            final = _final(target, aliases)
            remedy = f"write {final!r}" if final in models else "write a model"
            yield ("aliases", name), f"the target {target!r} is an alias itself, and aliases do not chain; {remedy}"
        else:
            yield ("aliases", name), f"unknown model {target!r}{nearest(target, models)}"
    yield from _contradictions(aliases)


def _final(target: str, aliases: Mapping[str, str]) -> str:
    """Return the end of a chain of aliases; some alias if it is a cycle."""
    for _ in aliases:
        target = aliases.get(target, target)
    return target


def _contradictions(aliases: Mapping[str, str]) -> Problems:
    """Yield pairs of patterns of equal precedence that some name matches, and whose targets differ."""
    patterns = [name for name in aliases if "*" in name]
    for one, other in combinations(patterns, 2):
        if aliases[one] != aliases[other] and _precedence(one) == _precedence(other) and overlap(one, other):
            yield (
                ("aliases", other),
                f"{other!r} and {one!r} match the same names, equally closely, and mean {aliases[other]!r} and "
                f"{aliases[one]!r}; make one of them longer, or give both one target",
            )
