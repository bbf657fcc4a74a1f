"""An expert that was never scored gets traffic by exploration alone, with its exact propensity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coe.core import Decision, Prediction
from coe.planning.assignment import Assignment
from coe.planning.problem import declared_assignment
from coe.routing.decision import decide
from tests.decisions import CATEGORIES, FULL, chat_of
from tests.fakes import registry_of

REGISTRY = registry_of(policy={"exploration": {"rate": 0.2, "max_quality_loss": 0.05}})


def open_to(expert: str, *categories: str) -> Assignment:
    """The declared mapping, in which one expert was never scored and may serve some categories."""
    declared = declared_assignment(REGISTRY, CATEGORIES)
    quality, column = declared.quality.copy(), declared.experts.index(expert)
    quality[:, column] = -np.inf
    cells = np.zeros(quality.shape, dtype=np.bool_)
    cells[[CATEGORIES.index(name) for name in categories], column] = True
    return replace(declared, quality=quality, unmeasured=cells)


def decided(assignment: Assignment, *posterior: float, uniform: float | None, **changes: object) -> Decision:
    return decide(
        chat_of("hello"),
        Prediction(np.array(posterior, dtype=np.float32), "test", 1.0),
        registry=REGISTRY,
        assignment=assignment,
        uniform=uniform,
        **changes,  # type: ignore[arg-type]
    )


def test_it_is_tried_at_the_declared_rate_and_never_routed_to() -> None:
    found = [decided(open_to("painter", "code"), 1.0, 0.0, 0.0, uniform=(n + 0.5) / 100) for n in range(100)]
    tried = [one for one in found if one.expert == "painter"]
    assert {(one.reason, one.propensity) for one in tried} == {("explored", 0.2)}
    assert len(tried) == 20
    assert {(one.expert, one.propensity) for one in found if one not in tried} == {("coder", 0.8)}
    assert decided(open_to("painter", "code"), 1.0, 0.0, 0.0, uniform=None).expert == "coder"


def test_it_is_not_tried_where_it_may_not_serve_or_has_no_room() -> None:
    for uniform in np.linspace(0, 0.999, 50):
        assert decided(open_to("painter", "art"), 1.0, 0.0, 0.0, uniform=float(uniform)).expert == "coder"
        full = decided(
            open_to("painter", "code"), 1.0, 0.0, 0.0, uniform=float(uniform), health_by_expert={"painter": FULL}
        )
        assert full.expert == "coder"
