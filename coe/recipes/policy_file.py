"""Stores the arms of a plan as JSON next to it (`recipes.json`): fitted policies, and chains and fuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from coe.errors import ArtifactError
from coe.recipes.agreement import STATE_FEATURES, AnswerWeights, Array
from coe.recipes.policy import RecipePolicy, Step
from coe.registry import ArmSpec

RECIPES_FILE = "recipes.json"


@dataclass(frozen=True, slots=True)
class WrittenArm:
    """The arm of a chain or fuse as it was measured: it has no policy. `writing` is `RecipeSpec.writing_digest`."""

    steps: tuple[tuple[str, ...], ...]
    writing: str

    @property
    def members(self) -> tuple[str, ...]:
        """Return the members in the order of their first calls, each once."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step))


@dataclass(frozen=True, slots=True, eq=False)
class ArmPolicies:
    """The policies of arms by arm name, over `categories` in the order of their coefficients. `written` are the arms of
    chains and fuses."""

    categories: tuple[str, ...]
    by_arm: Mapping[str, RecipePolicy]
    written: Mapping[str, WrittenArm] = field(default_factory=dict)
    version: Literal[5] = 5

    @property
    def steps(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Return the members of each step by recipe."""
        fitted = {name: tuple(step.members for step in one.steps) for name, one in self.by_arm.items()}
        return fitted | {name: one.steps for name, one in self.written.items()}

    def has(self, arm: ArmSpec) -> bool:
        """Return True if a declared arm has the steps, the instruction and the judge that were planned."""
        if written := self.written.get(arm.name):
            return (written.steps, written.writing) == (arm.steps, arm.writing_digest)
        if (fitted := self.by_arm.get(arm.name)) is None or arm.writing_digest:
            return False
        return self.steps[arm.name] == arm.steps and fitted.judge == arm.judge

    def only(self, arms: Collection[str]) -> ArmPolicies:
        """Return some of the arms."""
        fitted = {name: one for name, one in self.by_arm.items() if name in arms}
        return replace(self, by_arm=fitted, written={name: one for name, one in self.written.items() if name in arms})

    def over(self, categories: Sequence[str]) -> ArmPolicies:
        """Return the policies over other categories; one that a policy was not fitted to has no deviation."""
        columns = [self.categories.index(name) if name in self.categories else -1 for name in categories]

        def pick(values: Array, fixed: int) -> Array:
            """Reorder the coefficients of categories, which follow `fixed` other ones; column -1 becomes 0."""
            by_category = np.concatenate((values[..., fixed:], np.zeros((*values.shape[:-1], 1))), axis=-1)
            return np.concatenate((values[..., :fixed], by_category[..., columns]), axis=-1)

        def moved(step: Step) -> Step:
            gain, graded = step.gain, step.graded
            return replace(
                step,
                weights=AnswerWeights(pick(step.weights.member, 1), pick(step.weights.none, 1)),
                gain=None if gain is None else pick(gain, STATE_FEATURES),
                graded=None if graded is None else replace(graded, gain=pick(graded.gain, STATE_FEATURES)),
            )

        by_arm = {name: replace(one, steps=tuple(map(moved, one.steps))) for name, one in self.by_arm.items()}
        return replace(self, categories=tuple(categories), by_arm=by_arm)

    def to_json(self) -> bytes:
        """Serialize to JSON."""
        return _FILE.dump_json(self)

    @classmethod
    def from_json(cls, data: bytes) -> ArmPolicies:
        """Parse the result of `to_json`. Raises ArtifactError."""
        try:
            return _FILE.validate_json(data)
        except (TypeError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ArtifactError(f"{RECIPES_FILE} cannot be read ({reason}); make it again with `coe plan`") from None


_FILE = TypeAdapter(ArmPolicies)
NO_POLICIES = ArmPolicies((), {})
