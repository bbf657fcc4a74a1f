"""The fitted policy of a recipe: in which order members answer, when to stop, and whose answer to return.

A policy is one arm of the plan. The policies of one recipe differ by `price`: the quality that one unit of cost must
add, below which another answer is not worth its cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import (
    NO_ANSWER,
    STATE_FEATURES,
    AnswerWeights,
    Array,
    best_answer,
    relative_length,
    stop_features,
)
from coe.recipes.judge import GradeRule, default_rule
from coe.registry import RecipeSpec


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Members that are called at the same time, and the rule that follows from the answers so far.

    `weights` and `typical` (mean of log(1 + output tokens)) cover the members of this step and of all earlier ones.
    `gain`, shape (STATE_FEATURES + n_categories,), are the coefficients of the expected gain of continuing, net of its
    cost; None for the last step. `graded` decides instead where a judge has graded the best answer. `max_tokens` is the
    cap of each of its members' answers, inf without one; empty if none has one.
    """

    members: tuple[str, ...]
    weights: AnswerWeights = field(repr=False)
    typical: Array = field(repr=False)
    gain: Array | None = field(default=None, repr=False)
    graded: GradeRule | None = None
    max_tokens: tuple[float, ...] = ()

    @property
    def caps(self) -> Array:
        """Return the cap of each member's answer in tokens, shape (n_members of this step,)."""
        return np.array(self.max_tokens or (np.inf,) * len(self.members), dtype=np.float64)

    @property
    def is_last(self) -> bool:
        """Return whether no step follows. Its caps apply only where an earlier answer can be compared, so that an
        answer that was cut off never has to be returned."""
        return self.gain is None


@dataclass(frozen=True, slots=True, eq=False)
class RecipePolicy:
    """One arm of a recipe. `price` is quality per unit of cost, `judge` the expert that grades, empty without one.

    `max_loss` is the bound that the arm was tested for, None without one.
    """

    recipe: str
    price: float
    steps: tuple[Step, ...]
    judge: str = ""
    max_loss: float | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Return all members in the order of their calls."""
        return tuple(name for step in self.steps for name in step.members)

    def never_stopping(self) -> RecipePolicy:
        """Return the policy that calls every step: the expected gain of continuing is always 1, and no judge grades."""
        always = (None if step.gain is None else np.eye(1, len(step.gain))[0] for step in self.steps)
        steps = tuple(replace(step, gain=gain, graded=None) for step, gain in zip(self.steps, always, strict=True))
        return replace(self, steps=steps, judge="")

    @property
    def max_tokens(self) -> dict[str, int]:
        """Return the cap of each member that has one."""
        caps = [(name, cap) for step in self.steps for name, cap in zip(step.members, step.caps, strict=True)]
        return {name: int(cap) for name, cap in caps if np.isfinite(cap)}

    @property
    def caps(self) -> Array:
        """Return the cap of each member's answer in tokens, shape (n_members,)."""
        return np.concatenate([step.caps for step in self.steps])

    def with_caps(self, caps: Mapping[str, float]) -> RecipePolicy:
        """Return the policy with these caps by member, inf without one, instead of its own."""
        if caps == self.max_tokens:
            return self
        limits = (tuple(caps.get(name, np.inf) for name in step.members) for step in self.steps)
        steps = zip(self.steps, limits, strict=True)
        return replace(
            self, steps=tuple(replace(step, max_tokens=own if min(own) < np.inf else ()) for step, own in steps)
        )

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
        goes_on = np.asarray(features @ step.gain > 0)
        if grades is not None and step.graded is not None:
            goes_on = np.where(np.isnan(grades), goes_on, step.graded.goes_on(features, grades))
        return probabilities, goes_on


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """The outcome of a policy on recorded answers.

    `member` (n_prompts,) is the position of the returned answer in `RecipePolicy.members`; `calls` (n_prompts,
    n_members) is True for the members that were called, and `cut_off` of the same shape where a cap ended the answer.
    """

    member: NDArray[np.int64]
    calls: NDArray[np.bool_]
    cut_off: NDArray[np.bool_]


def replay(
    policy: RecipePolicy,
    classes: NDArray[np.int64],
    tokens: Array,
    posterior: Array,
    grades: Array | None = None,
    *,
    streams: bool = False,
) -> Replayed:
    """Run a policy on recorded answers, columns (n_prompts, n_members) in the order of `policy.members`.

    `grades` of the same shape are those of its judge, NaN without one. In streams, caps apply only where an earlier
    answer is readable, and in non-streaming answers also to all steps but the last.

    Where no answer is readable, the first one of the latest step is returned, as in serving; if one of that step was
    cut off, the next step is called first. With a judge, the first of the last step is returned if none of it is
    readable, since the judge has rejected the earlier answers.
    """
    total = len(classes)
    chosen, calls = np.zeros(total, dtype=np.int64), np.zeros((total, len(policy.members)), dtype=bool)
    cut_off = np.zeros_like(calls)
    live, seen = np.arange(total), 0
    for number, step in enumerate(policy.steps):
        first, seen = seen, seen + len(step.members)
        calls[live, first:seen] = True
        held = ~_unreadable(_read(classes, cut_off, live, first))
        applies = held | (not step.is_last and not streams)
        cut_off[live, first:seen] = applies[:, None] & (tokens[live, first:seen] > step.caps)
        read = _read(classes, cut_off, live, seen)
        written = np.minimum(tokens[live, :seen], np.where(cut_off[live, :seen], policy.caps[:seen], np.inf))
        so_far = read, written, posterior[live]
        probabilities, goes_on = policy.evaluate(number, *so_far)
        chosen[live] = best_answer(probabilities, otherwise=first)
        if policy.judge and step.gain is None:
            chosen[live] = np.where(_unreadable(read[:, first:]), first, chosen[live])
        if grades is not None:
            _, goes_on = policy.evaluate(number, *so_far, grades[live, chosen[live]])
        if step.gain is not None:
            goes_on = goes_on | (_unreadable(read) & cut_off[live, first:seen].any(axis=1))
        live = live[goes_on]
    return Replayed(chosen, calls, cut_off)


def _read(
    classes: NDArray[np.int64], cut_off: NDArray[np.bool_], rows: NDArray[np.int64], members: int
) -> NDArray[np.int64]:
    """Return the answer classes of the first members, NO_ANSWER where a cap ended the answer."""
    return np.where(cut_off[rows, :members], NO_ANSWER, classes[rows, :members])


def _unreadable(classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which prompts have no readable answer."""
    return np.asarray((classes == NO_ANSWER).all(axis=1))


def member_columns(policy: RecipePolicy, experts: Sequence[str]) -> list[int]:
    """Return the column of each member in a table with a column for every expert."""
    return [list(experts).index(name) for name in policy.members]


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
    votes = bool(recipe.vote)
    steps = []
    members = 0
    for number, names in enumerate(recipe.steps):
        members += len(names)
        weights = [1 + (0.0 if votes else LATER_STEP_WEIGHT * earlier) for earlier in _step_of_members(recipe, number)]
        needed = 2 if votes or len(names) > 1 else 1
        gain = None if number + 1 == len(recipe.steps) else _gain(needed, categories)
        graded = None if recipe.judge is None or gain is None else default_rule(categories)
        answer_weights = AnswerWeights(np.array(weights)[:, None], np.zeros(1))
        steps.append(Step(names, answer_weights, np.zeros(members), gain, graded, recipe.caps_of(names)))
    return RecipePolicy(recipe.name, 0.0, tuple(steps), recipe.judge or "")


def _step_of_members(recipe: RecipeSpec, last: int) -> list[int]:
    """Return the step of each member up to step `last`."""
    return [number for number, names in enumerate(recipe.steps[: last + 1]) for _ in names]


def _gain(needed: int, categories: int) -> Array:
    """Return coefficients of `stop_features` that are positive unless `needed` members or more gave one answer.

    With one answer class of n members of weight 1, its probability is 1 / (1 + exp(-n)).
    """
    threshold = 1 / (1 + np.exp(0.5 - needed))
    gain = np.zeros(STATE_FEATURES + categories)
    gain[0], gain[1], gain[4] = threshold, -1.0, _SECOND_CLASS_GAIN  # constant, highest and second probability
    return gain
