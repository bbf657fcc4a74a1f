"""A plan under another experts.yaml: the plan in effect, and the consequences of each edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from coe.errors import ArtifactError
from coe.planning.assignment import Assignment
from coe.planning.job.basis import declared_problem
from coe.planning.plan import Plan, declared_digests, effective_plan, round_traffic
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve
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


def published(**changes: Any) -> Plan:
    """A plan for the usual declaration with changes."""
    registry = registry_of(**declaration(**changes))
    member = np.repeat(np.eye(4), 25, axis=0)
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, size=(100, 3))
    scores = np.repeat(np.array([QUALITY[name] for name in registry.expert_names]).T, 25, axis=0) + noise
    table = tabulate_softly(CATEGORIES, registry.expert_names, member, scores)
    problem = declared_problem(registry, table, quality=table.shrunk(), weights=table.count.max(axis=1))
    traffic = round_traffic(member * 0.9 + 0.1 / 4) if problem.budget else None
    made_for = {"pins": registry.assignment, "declared": declared_digests(registry)}
    return Plan(
        solve(problem, traffic=traffic),
        problem,
        table,
        "100 prompts",
        problem.quality,
        problem.quality,
        **made_for,
        traffic=traffic,
    )


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
        {"experts": [*without(""), expert("newcomer")], "policy": {"exploration": {"rate": 0.1}}},
        {},
        [("expert_added", "newcomer")],
        True,
        "and nothing is routed to it except by exploration. For more, run `coe score` and `coe plan`",
    ),
    "a new expert that a category is pinned to": Case(
        {
            "experts": [*without(""), expert("newcomer")],
            "assignment": {"general": "generalist", "law": "newcomer"},
        },
        {"law": "newcomer"},
        [("expert_added", "newcomer"), ("pin_changed", "law")],
        True,
        "it answers law, as experts.yaml declares",
    ),
    "an expert gone that served": Case(
        {"experts": without("painter")},
        {"art": "generalist", "law": "coder"},
        [("expert_removed", "painter")],
        True,
        "expert 'painter' is not declared any more: art goes to 'generalist', law goes to 'coder'",
    ),
    "another model under the same name": Case(
        {"experts": with_changed("coder", model="coder-70b", base_url="http://other/v1")},
        {},
        [("expert_changed", "coder")],
        True,
        "expert 'coder': model, base_url changed; the plan stays as it is. Run `coe score` and `coe plan` again",
    ),
    "a price": Case(
        {"experts": with_changed("painter", prices={"input": 100, "output": 100}, active_parameters_b=70)},
        {},
        [("expert_changed", "painter")],
        True,
        "expert 'painter': prices, active_parameters_b changed; the plan stays as it is. Run `coe plan` again",
    ),
    "a new category": Case(
        {"categories": categories(*CATEGORIES, "travel")},
        {"travel": "generalist"},
        [("category_added", "travel")],
        True,
        "'generalist' answers it",
    ),
    "a new category with a pin": Case(
        {
            "categories": categories(*CATEGORIES, "travel"),
            "assignment": {"general": "generalist", "travel": "coder"},
        },
        {"travel": "coder"},
        [("category_added", "travel")],
        True,
    ),
    "a category gone": Case(
        {"categories": categories("code", "art", "general")},
        {},
        [("category_removed", "law")],
        False,
    ),
    "a pin more": Case(
        {"assignment": {"general": "generalist", "code": "painter"}},
        {"code": "painter"},
        [("pin_changed", "code")],
        True,
        "category 'code' is pinned to 'painter' now; 'painter' answers it",
    ),
    "another general expert": Case(
        {"assignment": {"general": "painter"}},
        {"general": "painter"},
        [("pin_changed", "general")],
        True,
    ),
    "another limit": Case(
        {"budget": {"mean_cost": 0.5}},
        {},
        [("budget_changed", "mean_cost")],
        True,
        "budget: mean_cost None -> 0.5: the plan keeps the former limit",
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
    assert effect.assignment.digest == plan.assignment.digest


def test_a_category_that_is_no_longer_pinned_keeps_its_expert() -> None:
    plan = published(assignment={"general": "generalist", "code": "painter"})
    effect = effective_plan(plan, registry_of(**declaration()))
    assert serves(effect.assignment)["code"] == "painter"
    (pin,) = effect.consequences
    assert pin.sentence.startswith("category 'code' is no longer pinned to 'painter'; 'painter' answers it")


def test_where_no_hosted_expert_of_a_category_is_left_another_one_serves() -> None:
    def local(*names: str) -> dict[str, Any]:
        server = {"runtime": "vllm", "base_url": None, "memory_gb": 20, "model": "one"}
        return declaration(experts=[expert(name, **server) for name in names], budget={"memory_gb": 40})

    plan = published(**{key: local(*QUALITY)[key] for key in ("experts", "budget")})
    assert set(plan.assignment.hosted) == {"painter", "generalist"}
    found = effective_plan(plan, registry_of(**local("coder", "generalist"))).assignment
    assert serves(found) == dict.fromkeys(CATEGORIES, "generalist")
    gone = effective_plan(plan, registry_of(**local("coder") | {"assignment": {}})).assignment
    assert serves(gone) == dict.fromkeys(CATEGORIES, "coder")


def test_a_plan_decides_an_unpinned_general_and_a_new_category_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUALITY, "painter", (0.5, 0.8, 0.6, 0.95))
    free, plan = declaration(assignment={}), published(assignment={})
    registry = registry_of(**free)
    assert registry.general_expert == "coder"  # the first one, which has no say here
    effect = effective_plan(plan, registry)
    assert (effect.consequences, effect.assignment.general_expert) == ((), "painter")
    with_travel = {**free, "categories": categories(*CATEGORIES, "travel")}
    assert serves(effective_plan(plan, registry_of(**with_travel)).assignment)["travel"] == "painter"


def test_only_a_plan_of_which_nothing_is_left_is_refused() -> None:
    others = registry_of(**declaration(experts=[expert("other")], assignment={"general": "other"}))
    with pytest.raises(ArtifactError, match=r"the plan knows none of the experts .*run `coe score` and `coe plan`"):
        effective_plan(published(), others)
    renamed = registry_of(**declaration(categories=categories("x", "general")))
    assert serves(effective_plan(published(), renamed).assignment) == {"x": "generalist", "general": "generalist"}


def test_only_open_categories_are_tried_with_a_new_expert() -> None:
    edit = {"experts": [*without(""), expert("newcomer")], "assignment": {"general": "generalist", "law": "coder"}}
    found = effective_plan(published(), registry_of(**declaration(**edit))).assignment
    assert [found.unmeasured_experts(row) for row in range(4)] == [{"newcomer"}, {"newcomer"}, set(), set()]
