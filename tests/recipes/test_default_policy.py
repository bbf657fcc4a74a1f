"""The policy of a recipe before a plan has fitted one."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from coe.recipes.agreement import answer_classes, best_answer
from coe.recipes.policy import RecipePolicy, default_policy, replay
from coe.registry import RecipeSpec

POSTERIOR = np.full((1, 2), 0.5)


def policy_of(**declared: Any) -> RecipePolicy:
    return default_policy(RecipeSpec.model_validate({"name": "r", **declared}), categories=2)


@pytest.mark.parametrize(
    ("declared", "one_is_enough"),
    [
        ({"cascade": [["a", "b", "c", "d"], "e"]}, False),
        ({"cascade": [["a", "b", "c"], "d", "e"]}, True),
        ({"vote": list("abcdefgh"), "ask": "until_agreed"}, False),
    ],
)
def test_every_combination_of_answers_stops_exactly_where_they_agree(
    declared: dict[str, Any], one_is_enough: bool
) -> None:
    policy = policy_of(**declared)
    before, step = len(policy.steps[-1].members), len(policy.steps) - 2
    members = len(policy.members) - before
    for answers in product((None, "X", "Y"), repeat=members):
        valid = [answer for answer in answers if answer is not None]
        agree = len(set(valid)) == 1 and len(valid) >= (1 if one_is_enough else 2)
        classes = answer_classes(answers)[np.newaxis]
        _, goes_on = policy.evaluate(step, classes, np.ones((1, members)), POSTERIOR)
        assert bool(goes_on[0]) is not agree, answers


def test_the_majority_wins_and_between_equals_the_later_step_of_a_cascade() -> None:
    def best(policy: RecipePolicy, *answers: str | None) -> int:
        classes = answer_classes(answers)[np.newaxis]
        probabilities, _ = policy.evaluate(len(policy.steps) - 1, classes, np.ones(classes.shape), POSTERIOR)
        return int(best_answer(probabilities, otherwise=0)[0])

    cascade, vote = policy_of(cascade=[["a", "b", "c"], "d"]), policy_of(vote=["a", "b", "c", "d"])
    assert best(cascade, "X", "Y", "Y", "Z") == best(vote, "X", "Y", "Y", "Z") == 1
    assert best(cascade, "X", "Y", None, "Z") == 3
    assert best(vote, "X", "Y", None, "Z") == 0


def test_a_vote_that_calls_all_members_has_one_step() -> None:
    policy = policy_of(vote=["a", "b", "c"])
    classes = np.array([answer_classes(("X", "Y", "Y"))])
    found = replay(policy, classes, np.ones((1, 3)), POSTERIOR)
    assert (found.member.tolist(), found.calls.tolist()) == ([1], [[True, True, True]])
