"""Fitted policies are stored beside a plan and read back."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from coe.errors import ArtifactError
from coe.recipes.fitting.arms import declared_arms
from coe.recipes.policy import replay
from coe.recipes.policy_file import ArmPolicies
from tests.recipes.recorded import recorded_answers

ANSWERS = recorded_answers(
    {"a": (0.6, 0.3), "b": (0.5, 0.4), "c": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "c": 9.0}, prompts=600
)
STORED = ArmPolicies(
    ("code", "law"),
    {"careful": declared_arms(ANSWERS, "careful", [[0, 1], [2]])[0].policy},
)


def test_a_policy_decides_the_same_after_it_is_read_back() -> None:
    found = ArmPolicies.from_json(STORED.to_json())
    for arm, policy in STORED.by_arm.items():
        before = replay(policy, ANSWERS.classes, ANSWERS.tokens, ANSWERS.posterior)
        after = replay(found.by_arm[arm], ANSWERS.classes, ANSWERS.tokens, ANSWERS.posterior)
        assert before.member.tolist() == after.member.tolist()
        assert before.calls.tolist() == after.calls.tolist()


def test_the_share_of_streams_that_a_plan_counted_is_kept() -> None:
    assert ArmPolicies.from_json(replace(STORED, streamed=0.25).to_json()).streamed == 0.25
    found = orjson.loads(STORED.to_json()) | {"streamed": 1.5}
    with pytest.raises(ArtifactError, match=r"streamed 1\.5, not between 0 and 1"):
        ArmPolicies.from_json(orjson.dumps(found))


def test_other_categories_change_the_order_and_new_ones_have_no_deviation() -> None:
    moved = STORED.over(("new", "law", "code"))
    posterior = np.column_stack((np.zeros(len(ANSWERS.labels)), ANSWERS.posterior[:, 1], ANSWERS.posterior[:, 0]))
    for arm, policy in STORED.by_arm.items():
        before = replay(policy, ANSWERS.classes, ANSWERS.tokens, ANSWERS.posterior)
        after = replay(moved.by_arm[arm], ANSWERS.classes, ANSWERS.tokens, posterior)
        assert before.member.tolist() == after.member.tolist()
        assert moved.by_arm[arm].steps[0].weights.member[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arms: arms["careful"]["steps"][0].pop("typical"), "typical"),
        (lambda arms: arms["careful"]["steps"][0]["member_weights"].pop(), "shape"),
        (lambda arms: arms["careful"]["steps"].pop(), "last step"),
        (lambda arms: arms["careful"]["steps"][0]["gain"].__setitem__(0, None), "finite"),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(damage, message: str) -> None:
    found = orjson.loads(STORED.to_json())
    damage(found["arms"])
    with pytest.raises(ArtifactError, match=message) as error:
        ArmPolicies.from_json(orjson.dumps(found))
    assert "coe plan" in str(error.value)


def test_a_file_of_a_former_version_is_refused_with_the_remedy() -> None:
    found = orjson.loads(STORED.to_json()) | {"version": 1}
    with pytest.raises(ArtifactError, match=r"version 1, not 4.*make it again with `coe plan`"):
        ArmPolicies.from_json(orjson.dumps(found))


def test_a_file_that_is_no_json_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"recipes\.json"):
        ArmPolicies.from_json(b"{")
