"""The policy of a recipe before a plan has fitted one: all members count alike, and agreement stops the recipe."""

from __future__ import annotations

import numpy as np

from coe.experts.recipes.agreement import STATE_FEATURES, AnswerWeights, Array
from coe.experts.recipes.policy import RecipePolicy, Step
from coe.registry import RecipeSpec

LATER_STEP_WEIGHT = 1e-3
"""Weight that the answers of each further step of a cascade count more, so that a later one wins between equals."""
_SECOND_CLASS_GAIN = 1e9
"""Gain per probability of a second answer class: any second class outweighs the first."""


def default_policy(recipe: RecipeSpec, *, categories: int) -> RecipePolicy:
    """Return the policy for posteriors over so many categories.

    The next step is called unless the answers so far agree: two or more final answers, all equal. In a cascade, one
    final answer is enough after a step of one member.
    """
    votes = bool(recipe.vote)
    steps = []
    members = 0
    for number, names in enumerate(recipe.steps):
        members += len(names)
        weights = [1 + (0.0 if votes else LATER_STEP_WEIGHT * earlier) for earlier in _step_of_members(recipe, number)]
        needed = 2 if votes or len(names) > 1 else 1
        gain = None if number + 1 == len(recipe.steps) else _gain(needed, categories)
        steps.append(Step(names, AnswerWeights(np.array(weights)[:, None], np.zeros(1)), np.zeros(members), gain))
    return RecipePolicy(recipe.name, 0.0, tuple(steps))


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
