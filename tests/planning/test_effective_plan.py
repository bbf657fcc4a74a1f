"""A plan under another experts.yaml: the plan in effect, and the consequences of each edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from coe.errors import ArtifactError, DataError
from coe.planning import (
    Assignment,
    Dependencies,
    PlanInputs,
    PlanRecord,
    Problem,
    PublishedPlan,
    common_part,
    current_problem,
    effective_plan,
    planned_quality,
    round_traffic,
    solve,
)
from coe.planning.job.budget_solver import declared_problem
from coe.planning.score_table import tabulate_softly
from coe.registry import Registry
from tests.fakes import registry_of

CATEGORIES = ("code", "art", "law", "general")
QUALITY = {"coder": (0.9, 0.3, 0.5, 0.4), "painter": (0.5, 0.8, 0.6, 0.6), "generalist": (0.7, 0.5, 0.4, 0.7)}
PRICES = {"coder": 1.0, "painter": 4.0, "generalist": 0.5}
"""US dollars per million tokens, read or written."""


def expert(name: str, **changes: Any) -> dict[str, Any]:
    price = PRICES.get(name, 1.0)
    usual = {"name": name, "model": f"{name}-7b", "runtime": "external", "base_url": "http://h/v1"}
    return usual | {"active_parameters_b": 7, "prices": {"input": price, "output": price}} | changes


def declaration(**changes: Any) -> dict[str, Any]:
    usual = {
        "categories": [{"name": name, "description": f"about {name}"} for name in CATEGORIES],
        "experts": [expert(name) for name in QUALITY],
        "assignment": {"general": "generalist"},
    }
    return usual | changes


def measured(registry: Registry) -> tuple[Problem, PlanInputs]:
    member = np.repeat(np.eye(4), 25, axis=0)
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, size=(100, 3))
    scores = np.repeat(np.array([QUALITY[name] for name in registry.expert_names]).T, 25, axis=0) + noise
    table = tabulate_softly(CATEGORIES, registry.expert_names, member, scores)
    problem = declared_problem(registry, table, quality=table.lower(deviations=1.0), weights=table.count.max(axis=1))
    traffic = round_traffic(member * 0.9 + 0.1 / 4) if problem.budget.rows() else None
    return problem, PlanInputs(problem, table, traffic, 1.0, "100 prompts")


def published(**changes: Any) -> PublishedPlan:
    """A plan for the usual declaration with changes."""
    registry = registry_of(**declaration(**changes))
    problem, basis = measured(registry)
    record = PlanRecord(problem, basis.table.lower(deviations=1.0), Dependencies.of(registry))
    return PublishedPlan("v1", solve(problem, traffic=basis.traffic), record)


def serves(found: Assignment) -> Mapping[str, str]:
    return dict(zip(found.categories, found.choice, strict=True))


def without(name: str) -> list[dict[str, Any]]:
    return [expert(one) for one in QUALITY if one != name]


def with_changed(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [expert(one, **(changes if one == name else {})) for one in QUALITY]


def categories(*names: str, **descriptions: str) -> list[dict[str, Any]]:
    return [{"name": name, "description": descriptions.get(name, f"about {name}")} for name in names]


USUAL = {"code": "coder", "art": "painter", "law": "painter", "general": "generalist"}


@dataclass(frozen=True)
class Case:
    """An edit of the declaration; who then serves in place of whom, and the consequences by kind and name."""

    edit: Mapping[str, Any]
    moved: Mapping[str, str]
    found: Sequence[tuple[str, str]]
    replan: bool
    sentence: str = ""


CASES = {
    "nothing": Case({}, {}, [], False),
    "what no plan depends on": Case(
        {"policy": {"max_attempts": 1}, "limits": {"concurrent_requests": 5}}, {}, [], False
    ),
    "a new expert": Case(
        {"experts": [*without(""), expert("newcomer")]},
        {},
        [("expert_added", "newcomer"), ("learning", "retrain")],
        True,
        "nothing is routed to it. For more, run `coe score` and `coe plan`",
    ),
    "a new expert while exploration is on": Case(
        {"experts": [*without(""), expert("newcomer")], "policy": {"exploration": {"rate": 0.1}}},
        {},
        [("expert_added", "newcomer"), ("learning", "retrain")],
        True,
        "nothing is routed to it, and exploration selects it (rate 0.1)",
    ),
    "a new expert that a category is pinned to": Case(
        {
            "experts": [*without(""), expert("newcomer")],
            "assignment": {"general": "generalist", "law": "newcomer"},
        },
        {"law": "newcomer"},
        [("expert_added", "newcomer"), ("pin_changed", "law"), ("learning", "retrain")],
        True,
        "it answers law, as experts.yaml declares",
    ),
    "an expert gone that served": Case(
        {"experts": without("painter")},
        {"art": "generalist", "law": "coder"},
        [("expert_removed", "painter"), ("learning", "retrain")],
        True,
        "expert 'painter' is no longer declared: art goes to 'generalist', law goes to 'coder'",
    ),
    "another model under the same name": Case(
        {"experts": with_changed("coder", model="coder-70b", base_url="http://other/v1")},
        {},
        [("expert_changed", "coder")],
        True,
        "expert 'coder': model, base_url changed since the plan was made",
    ),
    "a price where no limit depends on it": Case(
        {"experts": with_changed("coder", prices={"input": 100, "output": 100})},
        {},
        [("expert_use_changed", "coder")],
        False,
        "US dollars per thousand requests 0.8 -> 80; no limit of the plan depends on it",
    ),
    "a size": Case(
        {"experts": with_changed("coder", active_parameters_b=70)}, {}, [("expert_use_changed", "coder")], False
    ),
    "a new category": Case(
        {"categories": categories(*CATEGORIES, "travel")},
        {"travel": "generalist"},
        [("category_added", "travel"), ("learning", "retrain")],
        True,
        "'generalist' answers it",
    ),
    "a new category with a pin": Case(
        {
            "categories": categories(*CATEGORIES, "travel"),
            "assignment": {"general": "generalist", "travel": "coder"},
        },
        {"travel": "coder"},
        [("category_added", "travel"), ("learning", "retrain")],
        True,
    ),
    "a category gone": Case(
        {"categories": categories("code", "art", "general")},
        {},
        [("category_removed", "law"), ("learning", "retrain")],
        False,
    ),
    "a category renamed": Case(
        {"categories": categories("code", "art", "legal", "general", legal="about law")},
        {"legal": "generalist"},
        [("category_added", "legal"), ("category_removed", "law"), ("learning", "retrain")],
        True,
        "It has the description of 'law', but a renamed category is a new one",
    ),
    "a category described otherwise": Case(
        {"categories": categories(*CATEGORIES, law="Contracts")}, {}, [("category_changed", "law")], False
    ),
    "a pin more": Case(
        {"assignment": {"general": "generalist", "code": "painter"}},
        {"code": "painter"},
        [("pin_changed", "code"), ("learning", "retrain")],
        True,
        "category 'code' is pinned to 'painter' now, no longer planned",
    ),
    "another general expert": Case(
        {"assignment": {"general": "painter"}},
        {"general": "painter"},
        [("general_changed", "general"), ("learning", "retrain")],
        True,
        "the general expert is 'painter' now, no longer 'generalist'",
    ),
    "a limit that the plan keeps": Case({"budget": {"mean_cost": 100}}, {}, [("budget_changed", "mean_cost")], True),
    "a limit that it breaks": Case(
        {"budget": {"mean_cost": 0.5}},
        {},
        [("budget_changed", "mean_cost"), ("budget_exceeded", "mean_cost")],
        True,
        "the plan uses mean_cost 1.9, above the limit of 0.5",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_edit_has_its_consequences(name: str) -> None:
    case = CASES[name]
    plan, registry = published(), registry_of(**declaration(**case.edit))
    effect = effective_plan(plan, registry)
    found = effect.assignment
    assert (found.categories, found.experts) == (registry.category_names, registry.expert_names)
    kept = {category: name for category, name in USUAL.items() if category in registry.category_names}
    assert serves(found) == {**kept, **case.moved}
    assert [(one.kind, one.name) for one in effect.consequences] == list(case.found)
    assert any(one.replan for one in effect.consequences) == case.replan
    assert case.sentence in "; ".join(one.sentence for one in effect.consequences)


def test_where_nothing_differs_the_plan_is_the_published_one_to_the_last_digit() -> None:
    limited = {"budget": {"mean_cost": 1.5, "max_share": 0.6}}
    plan = published(**limited)
    assert plan.assignment.price.any()
    effect = effective_plan(plan, registry_of(**declaration(**limited)))
    assert effect.consequences == ()
    assert effect.assignment.to_json() == plan.assignment.to_json()


def test_an_expert_that_served_nothing_leaves_without_advice() -> None:
    idle = published(experts=[expert(name) for name in QUALITY], assignment={"general": "generalist", "code": "coder"})
    nothing = replace(idle.assignment, choice=("coder", "generalist", "generalist", "generalist"))
    plan = replace(idle, assignment=nothing)
    declared = declaration(experts=without("painter"), assignment={"general": "generalist", "code": "coder"})
    effect = effective_plan(plan, registry_of(**declared))
    (gone, *_) = effect.consequences
    assert (gone.kind, gone.replan) == ("expert_removed", False)
    assert "it served no declared category" in gone.sentence


def test_a_price_edit_follows_into_the_prices_and_a_much_dearer_expert_loses_its_categories() -> None:
    limited = {"budget": {"mean_cost": 1.5}}
    plan = published(**limited)
    dual = plan.assignment.duals["mean_cost"]
    assert dual > 0
    dearer = with_changed("painter", prices={"input": 400, "output": 400})
    effect = effective_plan(plan, registry_of(**declaration(experts=dearer, **limited)))
    found = effect.assignment
    np.testing.assert_allclose(found.price[:, found.experts.index("painter")], dual * 320)
    assert "painter" not in found.choice
    kinds = {one.kind: one for one in effect.consequences}
    assert kinds["expert_use_changed"].replan
    assert "its mean price in the plan" in kinds["expert_use_changed"].sentence
    assert kinds["category_reassigned"].sentence == "category 'art' goes from 'painter' to 'generalist'"
    cheaper = with_changed("painter", prices={"input": 2, "output": 2})
    found = effective_plan(plan, registry_of(**declaration(experts=cheaper, **limited))).assignment
    np.testing.assert_allclose(found.price[:, found.experts.index("painter")], dual * 1.6)


def test_a_pin_less_opens_the_category_to_the_best_by_the_plan() -> None:
    plan = published(assignment={"general": "generalist", "code": "painter"})
    effect = effective_plan(plan, registry_of(**declaration()))
    assert serves(effect.assignment)["code"] == "coder"
    assert effect.assignment.runner_up[0] == "generalist"
    (pin, _) = effect.consequences
    assert pin.sentence == "category 'code' is no longer pinned to 'painter': 'coder' is the best by the plan"


def test_a_plan_decides_general_if_it_is_not_assigned_and_a_new_category_follows() -> None:
    free = declaration(assignment={})
    plan = published(assignment={})
    assert serves(plan.assignment) == {**USUAL, "general": "generalist"}
    better = QUALITY | {"painter": (0.5, 0.8, 0.6, 0.95)}
    with_travel = {**free, "categories": categories(*CATEGORIES, "travel")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUALITY, "painter", better["painter"])
        plan = published(assignment={})
    registry = registry_of(**free)
    assert registry.general_expert == "coder"  # the first one, which has no say here
    effect = effective_plan(plan, registry)
    assert (effect.consequences, effect.assignment.general_expert) == ((), "painter")
    assert serves(effective_plan(plan, registry_of(**with_travel)).assignment)["travel"] == "painter"


def test_general_without_its_pin_goes_to_the_best_by_the_plan_and_without_scores_to_the_first_expert() -> None:
    plan, registry = published(assignment={"general": "coder"}), registry_of(**declaration(assignment={}))
    effect = effective_plan(plan, registry)
    assert effect.assignment.general_expert == "generalist"
    assert effect.consequences[0].sentence.startswith("category 'general' is no longer pinned to 'coder'")
    record = plan.record
    assert record is not None
    bounds = np.where(np.arange(4)[:, None] == 3, np.nan, record.bounds)
    unscored = replace(plan, record=replace(record, bounds=bounds))
    assert effective_plan(unscored, registry).assignment.general_expert == "coder"


def test_memory_above_the_budget_is_reported() -> None:
    def local(gigabytes: float) -> list[dict[str, Any]]:
        return [
            {**expert(name), "runtime": "vllm", "base_url": None, "memory_gb": gigabytes, "model": "one"}
            for name in QUALITY
        ]

    budget = {"budget": {"memory_gb": 30}}
    plan = published(experts=local(5), **budget)
    effect = effective_plan(plan, registry_of(**declaration(experts=local(20), **budget)))
    assert [one.kind for one in effect.consequences] == ["expert_use_changed"] * 3 + ["budget_exceeded"]
    assert "memory_gb 60, above the limit of 30" in effect.consequences[-1].sentence


def test_only_a_plan_of_which_nothing_is_left_is_refused() -> None:
    others = registry_of(**declaration(experts=[expert("other")], assignment={"general": "other"}))
    with pytest.raises(ArtifactError, match=r"plan v1 knows none of the experts .*run `coe score` and `coe plan`"):
        effective_plan(published(), others)
    renamed = registry_of(**declaration(categories=categories("x", "general")))
    assert serves(effective_plan(published(), renamed).assignment) == {"x": "generalist", "general": "generalist"}


def test_a_plan_without_a_record_follows_the_names() -> None:
    plan = replace(published(), record=None)
    edit = {
        "experts": [*without("painter"), expert("newcomer")],
        "assignment": {"general": "coder", "code": "generalist"},
    }
    effect = effective_plan(plan, registry_of(**declaration(**edit)))
    kept = {"code": "coder", "art": "generalist", "law": "coder", "general": "generalist"}
    assert serves(effect.assignment) == kept
    assert [one.kind for one in effect.consequences] == ["expert_added", "expert_removed", "learning"]
    assert effective_plan(plan, registry_of(**declaration())).consequences == ()


def test_only_open_categories_are_tried_with_a_new_expert() -> None:
    edit = {"experts": [*without(""), expert("newcomer")], "assignment": {"general": "generalist", "law": "coder"}}
    found = effective_plan(published(), registry_of(**declaration(**edit))).assignment
    assert [found.unmeasured_experts(row) for row in range(4)] == [{"newcomer"}, {"newcomer"}, set(), set()]
    assert Assignment.from_json(found.to_json()).to_json() == found.to_json()


@pytest.mark.parametrize(
    ("edit", "experts", "planned"),
    [
        ({}, ("coder", "painter", "generalist"), CATEGORIES),
        ({"experts": [*without("painter"), expert("new")]}, ("coder", "generalist"), CATEGORIES),
        ({"categories": categories("code", "general", "new")}, ("coder", "painter", "generalist"), ("code", "general")),
        (
            {
                "experts": [*without(""), expert("new")],
                "assignment": {"general": "generalist", "law": "new", "art": "coder"},
            },
            ("coder", "painter", "generalist"),
            ("code", "art", "general"),
        ),
    ],
)
def test_the_problem_is_solved_again_over_what_is_declared_and_measured(
    edit: dict[str, Any], experts: tuple[str, ...], planned: tuple[str, ...]
) -> None:
    plan, registry = published(), registry_of(**declaration(**edit))
    found = current_problem(plan, registry, np.eye(4))
    assert found is not None
    problem, traffic = found
    assert (problem.experts, problem.categories) == (experts, planned)
    assert traffic is not None
    assert traffic.shape == (4, len(planned))
    effect = effective_plan(plan, registry).assignment
    again = solve(problem)
    assert {name: one for name, one in serves(effect).items() if name in planned} == serves(again)
    assert planned_quality(*common_part(problem, effect)) == pytest.approx(planned_quality(problem, again))


def test_nothing_left_to_solve_again_is_an_error_and_no_record_is_none() -> None:
    nothing = registry_of(**declaration(experts=[expert("other")], assignment={"general": "other"}))
    with pytest.raises(DataError, match="run `coe plan` again"):
        current_problem(published(), nothing)
    assert current_problem(replace(published(), record=None), registry_of(**declaration())) is None
