"""Stores the arms of a plan as JSON next to it (`recipes.json`): fitted policies, and chains and fuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from coe.errors import ArtifactError
from coe.recipes.agreement import STATE_FEATURES, AnswerWeights, Array
from coe.recipes.judge import GradeRule
from coe.recipes.policy import RecipePolicy, Step
from coe.registry import ArmSpec

RECIPES_FILE = "recipes.json"
VERSION = 4


@dataclass(frozen=True, slots=True)
class WrittenArm:
    """The arm of a chain or fuse as it was measured: it has no policy. `writing` is `RecipeSpec.writing_digest`."""

    recipe: str
    steps: tuple[tuple[str, ...], ...]
    writing: str


@dataclass(frozen=True, slots=True, eq=False)
class ArmPolicies:
    """The policies of arms by arm name, over `categories` in the order of their coefficients.

    `written` are the arms of chains and fuses. `streamed` is the share of requests that the plan counted as streams.
    """

    categories: tuple[str, ...]
    by_arm: Mapping[str, RecipePolicy]
    written: Mapping[str, WrittenArm] = field(default_factory=dict)
    streamed: float = 1.0

    @property
    def steps(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Return the members of each step by recipe."""
        fitted = {name: tuple(step.members for step in one.steps) for name, one in self.by_arm.items()}
        return fitted | {name: one.steps for name, one in self.written.items()}

    def has(self, arm: ArmSpec) -> bool:
        """Return True if a declared arm has the steps, the caps, the instruction and the judge that were planned."""
        if written := self.written.get(arm.name):
            return (written.steps, written.writing) == (arm.steps, arm.writing_digest)
        if (fitted := self.by_arm.get(arm.name)) is None or arm.writing_digest:
            return False
        same_steps = self.steps[arm.name] == arm.steps
        return same_steps and fitted.judge == arm.judge and fitted.max_tokens == arm.max_tokens

    def only(self, arms: Collection[str]) -> ArmPolicies:
        """Return some of the arms."""
        fitted = {name: one for name, one in self.by_arm.items() if name in arms}
        return replace(self, by_arm=fitted, written={name: one for name, one in self.written.items() if name in arms})

    def over(self, categories: Sequence[str]) -> ArmPolicies:
        """Return the policies over other categories; one that a policy was not fitted to has no deviation."""
        columns = [self.categories.index(name) if name in self.categories else -1 for name in categories]
        moved = {
            arm: replace(one, steps=tuple(_over(s, columns) for s in one.steps)) for arm, one in self.by_arm.items()
        }
        return replace(self, categories=tuple(categories), by_arm=moved)

    def to_json(self) -> bytes:
        """Serialize to JSON."""
        arms = {
            arm: {
                "recipe": one.recipe,
                "price": one.price,
                "judge": one.judge,
                "max_loss": one.max_loss,
                "steps": [_step_to_json(step) for step in one.steps],
            }
            for arm, one in self.by_arm.items()
        }
        written = {arm: asdict(one) for arm, one in self.written.items()}
        return orjson.dumps(
            {
                "version": VERSION,
                "categories": self.categories,
                "arms": arms,
                "written": written,
                "streamed": self.streamed,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> ArmPolicies:
        """Parse the result of `to_json`. Raises ArtifactError."""
        try:
            found = orjson.loads(data)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}, not {VERSION}")
            categories = tuple(str(name) for name in found["categories"])
            arms = {arm: _policy_from_json(one, len(categories)) for arm, one in found["arms"].items()}
            written = {arm: _written_from_json(one) for arm, one in found["written"].items()}
            streamed = float(found["streamed"])
            if not 0 <= streamed <= 1:
                raise ValueError(f"streamed {streamed}, not between 0 and 1")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{RECIPES_FILE} cannot be read ({error}); make it again with `coe plan`") from None
        return cls(categories, arms, written, streamed)


def _over(step: Step, columns: Sequence[int]) -> Step:
    weights = AnswerWeights(_pick(step.weights.member, 1, columns), _pick(step.weights.none, 1, columns))
    gain = None if step.gain is None else _pick(step.gain, STATE_FEATURES, columns)
    graded = step.graded
    if graded is not None:
        graded = replace(graded, gain=_pick(graded.gain, STATE_FEATURES, columns))
    return replace(step, weights=weights, gain=gain, graded=graded)


def _pick(values: Array, fixed: int, columns: Sequence[int]) -> Array:
    """Reorder the coefficients of categories, which follow `fixed` other ones; column -1 becomes 0."""
    by_category = np.concatenate((values[..., fixed:], np.zeros((*values.shape[:-1], 1))), axis=-1)
    return np.concatenate((values[..., :fixed], by_category[..., list(columns)]), axis=-1)


def _step_to_json(step: Step) -> dict[str, Any]:
    return {
        "members": step.members,
        "member_weights": step.weights.member.tolist(),
        "none_weights": step.weights.none.tolist(),
        "typical": step.typical.tolist(),
        "max_tokens": [int(cap) if np.isfinite(cap) else None for cap in step.max_tokens],
        "gain": None if step.gain is None else step.gain.tolist(),
        "graded": None if step.graded is None else _rule_to_json(step.graded),
    }


def _rule_to_json(rule: GradeRule) -> dict[str, Any]:
    return {"intercept": rule.intercept, "slope": rule.slope, "gain": rule.gain.tolist()}


def _policy_from_json(found: Mapping[str, Any], n_categories: int) -> RecipePolicy:
    steps: list[Step] = []
    seen = 0
    for one in found["steps"]:
        seen += len(one["members"])
        gain = None if one["gain"] is None else _array(one["gain"], (STATE_FEATURES + n_categories,))
        weights = AnswerWeights(
            _array(one["member_weights"], (seen, 1 + n_categories)), _array(one["none_weights"], (1 + n_categories,))
        )
        typical, graded = _array(one["typical"], (seen,)), _rule_from_json(one["graded"], n_categories)
        steps.append(Step(tuple(one["members"]), weights, typical, gain, graded, _caps_from_json(one)))
    if not steps or steps[-1].gain is not None:
        raise ValueError("the last step of a policy must not continue")
    max_loss = None if found["max_loss"] is None else float(found["max_loss"])
    return RecipePolicy(str(found["recipe"]), float(found["price"]), tuple(steps), str(found["judge"]), max_loss)


def _caps_from_json(found: Mapping[str, Any]) -> tuple[float, ...]:
    caps = tuple(np.inf if cap is None else float(cap) for cap in found["max_tokens"])
    if caps and (len(caps) != len(found["members"]) or not min(caps) > 0):
        raise ValueError(f"max_tokens {found['max_tokens']}, not a positive number or null for each member")
    return caps


def _rule_from_json(found: Mapping[str, Any] | None, n_categories: int) -> GradeRule | None:
    if found is None:
        return None
    intercept, slope = _array([found["intercept"], found["slope"]], (2,)).tolist()
    return GradeRule(intercept, slope, _array(found["gain"], (STATE_FEATURES + n_categories,)))


def _written_from_json(found: Mapping[str, Any]) -> WrittenArm:
    steps = tuple(tuple(map(str, step)) for step in found["steps"])
    return WrittenArm(str(found["recipe"]), steps, str(found["writing"]))


def _array(values: Any, shape: tuple[int, ...]) -> Array:
    array = np.array(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"coefficients of shape {array.shape}, not finite numbers of shape {shape}")
    return array


NO_POLICIES = ArmPolicies((), {})
