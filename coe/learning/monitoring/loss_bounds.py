"""Follows the loss bounds of the recipes in use from the audits in the feedback log, and stores which are broken.

The gateway and `coe status` read the same log, and each finds the same. The first that finds a broken bound writes it
to a small file of the state folder, which is shared like the traffic report. Gateways reload when the file changes:
a recipe in it stops early no more. An entry holds for one version of the fitted policies, so the next `coe plan` with
other scores ends it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.redis import open_shared
from coe.experts.recipes.policy_file import ArmPolicies
from coe.learning.recipes.max_loss import LIMIT, LossTest
from coe.records.feedback import SKIPPED, Feedback
from coe.registry import Registry
from coe.settings import Settings

LOSS_BOUNDS_FILE = "loss-bounds.json"
UNCOMPARED = SKIPPED | {"failed", "cancelled"}
MIN_DRAWS = 50
"""Draws from which it is reported that most of them compare nothing."""


@dataclass(slots=True)
class RecipeBound:
    """The test of one recipe, and the audits by outcome."""

    recipe: str
    test: LossTest
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def uncompared(self) -> Counter[str]:
        """The draws that compared nothing, by outcome: skipped, failed and cancelled audits."""
        return Counter({name: count for name, count in self.outcomes.items() if name in UNCOMPARED})

    @property
    def hardly_tested(self) -> bool:
        """True if most draws compared nothing."""
        draws = self.outcomes.total()
        return draws >= MIN_DRAWS and self.uncompared.total() > draws / 2

    @property
    def sentence(self) -> str:
        """For a report."""
        test = self.test
        return (
            f"{self.recipe} loses {test.loss:.4f} (max_loss {test.max_loss:g}): {test.differed} of {test.audited} "
            f"audited answers differ, where {test.rate:.1%} may; evidence {test.largest:.3g}, broken from 20 on"
        )

    def to_json(self) -> dict[str, Any]:
        test = self.test
        return {
            "recipe": self.recipe,
            "max_loss": test.max_loss,
            "loss": test.loss,
            "loss_per_difference": test.loss_per_difference,
            "audited": test.audited,
            "differed": test.differed,
            "outcomes": dict(self.outcomes),
            "evidence": test.largest,
            "broken": test.broken,
            "hardly_tested": self.hardly_tested,
            "sentence": self.sentence,
        }


class LossBounds:
    """The bounds of the recipes with `max_loss` whose `policies` are in use.

    Those that are stored as broken stay so: the log may have lost the audits since.
    """

    def __init__(self, registry: Registry, policies: ArmPolicies) -> None:
        self.registry = registry
        self.version = policies.version
        self.is_shared = False
        """True once the broken bounds are shared, where artifacts are."""
        self.by_recipe: dict[str, RecipeBound] = {}
        for recipe in registry.declared_recipes:
            policy = policies.by_arm.get(recipe.name)
            loss = None if policy is None else policy.loss_per_difference
            if recipe.max_loss is not None and loss is not None:
                test = LossTest(recipe.max_loss, loss, largest=LIMIT if recipe.name in policies.broken else 1.0)
                self.by_recipe[recipe.name] = RecipeBound(recipe.name, test)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for equal hypotheses."""
        tests = ((name, one.test.max_loss, one.test.loss_per_difference) for name, one in self.by_recipe.items())
        return (self.version, *tests)

    def add(self, events: Iterable[Feedback]) -> None:
        """Count the audits among the events, each once."""
        for event in events:
            detail = event.audit
            if detail is None or detail.policies != self.version or detail.recipe not in self.by_recipe:
                continue
            bound = self.by_recipe[detail.recipe]
            bound.outcomes[str(event.value)] += 1
            if event.value not in SKIPPED:  # these are given up whatever the other answers would have been
                bound.test.add(differs=event.value == "differed")

    @property
    def broken(self) -> frozenset[str]:
        """Names of the recipes whose bound is broken."""
        return frozenset(name for name, bound in self.by_recipe.items() if bound.test.broken)


def read_broken(path: Path, version: str, registry: Registry) -> frozenset[str]:
    """Return the recipes whose bound is stored as broken, for policies of this version and bounds that are no larger.

    Empty if the file is missing or damaged: the log still has the audits, and the file is written again.
    """
    declared = {recipe.name: recipe.max_loss for recipe in registry.declared_recipes}
    try:
        found = orjson.loads(path.read_bytes())
        if not version or found["policies"] != version:
            return frozenset()
        stored = {str(name): float(one["max_loss"]) for name, one in found["broken"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return frozenset()
    bounds = ((name, declared.get(name), broken) for name, broken in stored.items())
    return frozenset(name for name, bound, broken in bounds if bound is not None and bound <= broken)


def publish_broken(settings: Settings, bounds: LossBounds) -> frozenset[str]:
    """Store broken bounds that are not stored yet, on this machine and then where artifacts are shared. Returns them.

    Raises ArtifactError if they cannot be shared: they are stored here, and the next call shares them.
    """
    path = settings.artifacts / LOSS_BOUNDS_FILE
    stored = read_broken(path, bounds.version, bounds.registry)
    new = bounds.broken - stored
    if new:
        broken = {
            name: {"time": time.time(), "max_loss": one.test.max_loss, "sentence": one.sentence}
            for name, one in bounds.by_recipe.items()
            if name in stored | new
        }
        content = orjson.dumps({"policies": bounds.version, "broken": broken}, option=orjson.OPT_INDENT_2)
        settings.artifacts.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
        bounds.is_shared = False  # until then, a gateway here may put the former file back
    if bounds.broken and not bounds.is_shared:
        if (share := open_shared(bounds.registry.artifacts)) is not None:
            with closing(share):
                share.put_file(LOSS_BOUNDS_FILE, path.read_bytes())
        bounds.is_shared = True
    return new
