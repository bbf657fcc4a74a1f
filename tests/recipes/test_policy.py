"""Policies: before a plan has fitted one, and stored beside a plan."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import orjson
import pytest

from coe.errors import ArtifactError
from coe.recipes.agreement import answer_classes, best_answer
from coe.recipes.fitting.fit import Judgements, RecipeFit, replayed
from coe.recipes.policy import ArmPolicies, RecipePolicy, default_policy
from coe.registry import RecipeSpec
from tests.recipes.recorded import recorded_answers

POSTERIOR = np.full((1, 2), 0.5)
ANSWERS = recorded_answers(
    {"a": (0.6, 0.3), "b": (0.5, 0.4), "c": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "c": 9.0}, prompts=600
)
GRADES = np.where(ANSWERS.scores > 0, 8.0, 4.0)
STORED = ArmPolicies(
    ("code", "law"),
    {
        "careful": RecipeFit(ANSWERS, [[0, 1], [2]]).arm(0.016).policy,
        "graded": RecipeFit(ANSWERS, [[0], [2]], Judgements("b", GRADES, 0.1, {})).arm(0.016).policy,
    },
)


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
    members = len(policy.members) - len(policy.steps[-1].members)
    for answers in product((None, "X", "Y"), repeat=members):
        valid = [answer for answer in answers if answer is not None]
        agree = len(set(valid)) == 1 and len(valid) >= (1 if one_is_enough else 2)
        classes = answer_classes(answers)[np.newaxis]
        _, must_continue = policy.evaluate(len(policy.steps) - 2, classes, np.ones((1, members)), POSTERIOR)
        assert bool(must_continue[0]) is not agree, answers


def test_the_majority_wins_and_between_equals_the_later_step_of_a_cascade() -> None:
    def best(policy: RecipePolicy, *answers: str | None) -> int:
        classes = answer_classes(answers)[np.newaxis]
        probabilities, _ = policy.evaluate(len(policy.steps) - 1, classes, np.ones(classes.shape), POSTERIOR)
        return int(best_answer(probabilities, otherwise=0)[0])

    cascade, vote = policy_of(cascade=[["a", "b", "c"], "d"]), policy_of(vote=["a", "b", "c", "d"])
    assert len(vote.steps) == 1
    assert best(cascade, "X", "Y", "Y", "Z") == best(vote, "X", "Y", "Y", "Z") == 1
    assert best(cascade, "X", "Y", None, "Z") == 3
    assert best(vote, "X", "Y", None, "Z") == 0


# ------------------------------------------------------------------------------------------------------------ stored


def test_a_policy_decides_the_same_after_it_is_read_back_and_over_other_categories() -> None:
    moved = STORED.over(("new", "law", "code"))
    reordered = np.column_stack((np.zeros(len(ANSWERS.labels)), ANSWERS.posterior[:, 1], ANSWERS.posterior[:, 0]))
    for found, posterior in ((STORED, ANSWERS.posterior), (moved, reordered)):
        read = ArmPolicies.from_json(found.to_json())
        assert read.categories == found.categories
        for arm, policy in STORED.by_arm.items():
            before, after = replayed(policy, ANSWERS), replayed(read.by_arm[arm], ANSWERS, posterior)
            assert before.called.tolist() == after.called.tolist()
            assert before.scores.tolist() == after.scores.tolist()
            grades = GRADES if policy.judge else None
            graded = [replayed(policy, ANSWERS, grades=grades), replayed(read.by_arm[arm], ANSWERS, posterior, grades)]
            assert graded[0].called.tolist() == graded[1].called.tolist()
    assert moved.by_arm["careful"].steps[0].weights.member[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file["by_arm"]["careful"]["steps"][0].pop("typical"), "required"),
        (lambda file: file["by_arm"]["careful"]["steps"][0].__setitem__("typical", {}), "dict"),
        (lambda file: file.__setitem__("version", 1), "should be 5"),
        (lambda file: file.clear(), "required"),
    ],
)
def test_a_damaged_or_former_file_is_refused_with_the_remedy(damage: Any, message: str) -> None:
    file = orjson.loads(STORED.to_json())
    damage(file)
    with pytest.raises(ArtifactError, match=rf"recipes\.json.*{message}.*make it again with `coe plan`"):
        ArmPolicies.from_json(orjson.dumps(file))
