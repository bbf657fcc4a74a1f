"""The fitted policy of a recipe: in which order members answer, when to stop, and whose answer to return.

A policy is one arm of the plan. It was fitted at a price: the quality that one unit of cost must add, below which
another answer is not worth its cost.

Stores the arms of a plan as JSON next to it (`recipes.json`): fitted policies, and chains and fuses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from coe.errors import ArtifactError
from coe.recipes.agreement import (
    STATE_FEATURES,
    AnswerWeights,
    Array,
    GradeRule,
    default_rule,
    relative_length,
    stop_features,
)
from coe.registry import ArmSpec, RecipeSpec


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Members that are called at the same time, and the rule that follows from the answers so far.

    `weights` and `typical` (mean of log(1 + output tokens)) cover the members of this step and of all earlier ones.
    `gain`, shape (STATE_FEATURES + n_categories,), are the coefficients of the expected gain of continuing, net of its
    cost; None for the last step. `graded` decides instead where a judge has graded the best answer.
    """

    members: tuple[str, ...]
    weights: AnswerWeights = field(repr=False)
    typical: Array = field(repr=False)
    gain: Array | None = field(default=None, repr=False)
    graded: GradeRule | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RecipePolicy:
    """One arm of a recipe. `judge` is the expert that grades, empty without one; `max_loss` is the bound that the arm
    was tested for, None without one."""

    steps: tuple[Step, ...]
    judge: str = ""
    max_loss: float | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Return all members in the order of their calls."""
        return tuple(name for step in self.steps for name in step.members)

    @property
    def called(self) -> tuple[str, ...]:
        """Return the members, and the judge if there is one."""
        return (*self.members, self.judge) if self.judge else self.members

    def never_stopping(self) -> RecipePolicy:
        """Return the policy that calls every step: the expected gain of continuing is always 1, and no judge grades."""
        always = (None if step.gain is None else np.eye(1, len(step.gain))[0] for step in self.steps)
        steps = tuple(replace(step, gain=gain, graded=None) for step, gain in zip(self.steps, always, strict=True))
        return replace(self, steps=steps, judge="")

    def evaluate(
        self,
        number: int,
        classes: NDArray[np.int64],
        tokens: Array,
        posterior: Array,
        grades: Array | None = None,
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Evaluate the answers after step `number` (from 0) of several prompts.

        `classes` and `tokens` (of output) have shape (n_prompts, members so far), `posterior` (n_prompts,
        n_categories). `grades` (n_prompts,) are a judge's of the best answers, NaN where agreement alone decides.
        Returns the probability that each answer is right (`AnswerWeights.probabilities`), and whether
        each prompt continues to the next step.
        """
        step = self.steps[number]
        probabilities = step.weights.probabilities(classes, posterior)
        if step.gain is None:
            return probabilities, np.zeros(len(classes), dtype=bool)
        features = stop_features(probabilities, posterior, relative_length(tokens, step.typical))
        must_continue = np.asarray(features @ step.gain > 0)
        if grades is not None and step.graded is not None:
            must_continue = np.where(np.isnan(grades), must_continue, step.graded.must_continue(features, grades))
        return probabilities, must_continue


# ------------------------------------------------------------------------------------------- before a plan

LATER_STEP_WEIGHT = 1e-3
"""Weight that the answers of each further step of a cascade count more, so that a later one wins between equals."""
_SECOND_CLASS_GAIN = 1e9
"""Gain per probability of a second answer class: any second class outweighs the first."""


def default_policy(recipe: RecipeSpec, *, categories: int) -> RecipePolicy:
    """Return the policy for posteriors over this many categories.

    The next step is called unless the answers so far agree: two or more final answers, all equal. In a cascade, one
    final answer is enough after a step of one member. With a judge, its grade decides.
    """
    steps = []
    weights: list[float] = []
    for number, names in enumerate(recipe.steps):
        weights += [1.0 if recipe.vote else 1.0 + LATER_STEP_WEIGHT * number] * len(names)
        is_last = number + 1 == len(recipe.steps)
        gain = None if is_last else _gain(2 if recipe.vote or len(names) > 1 else 1, categories)
        graded = None if recipe.judge is None or is_last else default_rule(categories)
        answer_weights = AnswerWeights(np.array(weights)[:, None], np.zeros(1))
        steps.append(Step(names, answer_weights, np.zeros(len(weights)), gain, graded))
    return RecipePolicy(tuple(steps), recipe.judge or "")


def _gain(needed: int, categories: int) -> Array:
    """Return coefficients of `stop_features` that are positive unless `needed` members or more gave one answer.

    With one answer class of n members of weight 1, its probability is 1 / (1 + exp(-n)).
    """
    threshold = 1 / (1 + np.exp(0.5 - needed))
    gain = np.zeros(STATE_FEATURES + categories)
    gain[0], gain[1], gain[4] = threshold, -1.0, _SECOND_CLASS_GAIN  # constant, highest and second probability
    return gain


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
