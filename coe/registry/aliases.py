"""Names that clients may send as `model`: `aliases` and `operating_points` of experts.yaml, and their resolution.

An alias is a name, or a pattern in which `*` stands for any characters. A declared name comes first, then an exact
alias, then the first pattern that matches, in the order of the declaration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from coe.registry.sections import Probability, StrictModel

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
        models = {name: ResolvedModel(name) for name in (AUTO, *declared)}
        models |= {POINT_PREFIX + name: ResolvedModel(AUTO, point.cost_weight) for name, point in points.items()}
        self.fixed = tuple(models)
        """All names that are no aliases."""
        targets = {name: models[target] for name, target in aliases.items() if target in models}
        self._patterns = [(name, target) for name, target in targets.items() if "*" in name]
        self._exact = {name: target for name, target in targets.items() if "*" not in name} | models

    @property
    def names(self) -> tuple[str, ...]:
        """All names, and the aliases that are patterns."""
        return (*self._exact, *(pattern for pattern, _ in self._patterns))

    def resolve(self, model: str) -> ResolvedModel | None:
        """Return the model that a value of `model` stands for; None if it is not known."""
        if (found := self._exact.get(model)) is not None or len(model) > MAX_MODEL_CHARACTERS:
            return found
        return next((target for pattern, target in self._patterns if matches(pattern, model)), None)


def matches(pattern: str, name: str) -> bool:
    """Return whether a name, or a pattern in which `*` stands for any characters, matches a name."""
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))
