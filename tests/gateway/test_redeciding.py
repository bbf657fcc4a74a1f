"""A record suffices to replay the decision of its request, without a model and without the gateway."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.learning.experience import load_experience
from coe.learning.log_frame import frame_of
from coe.learning.off_policy import utility
from coe.planning.assignment import expected_utility
from coe.planning.problem import declared_assignment, relative_cost
from coe.records.record import RECORD
from coe.routing.decision import propensities
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

PRICED = {
    "experts": [
        {"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "prices": {"input": n}}
        for n, name in enumerate(("coder", "painter", "generalist"), start=1)
    ],
    "policy": {"cost_weight": 0.3, "confidence_threshold": 0, "exploration": {"rate": 0.4, "max_quality_loss": 1.0}},
}


@pytest.mark.parametrize("changes", [{}, PRICED])
async def test_posterior_worth_price_and_propensity_are_those_of_the_decision(changes: dict[str, Any]) -> None:
    registry = registry_of(**changes)
    async with gateway_of(registry) as gateway:
        for text in ("code", "art", "hello there", "code and art"):
            assert (await gateway.chat(text)).status == 200
        records = [RECORD.decode(RECORD.encode(record)) for record in gateway.records]
        categories = gateway.services.snapshot.composition.router.categories
    assignment = declared_assignment(registry, categories)
    charge = registry.policy.cost_weight * relative_cost(registry)
    charged = replace(assignment, price=assignment.price + charge)
    for record in records:
        posterior = np.array([record.probabilities[name] for name in categories])
        value = dict(zip(assignment.experts, expected_utility(charged, posterior), strict=True))
        np.testing.assert_allclose(record.utility, [value[name] for name in record.candidates], atol=1e-4)
        paid = dict(zip(assignment.experts, charge, strict=True))
        assert record.price == pytest.approx([paid[name] for name in record.candidates] if charge.any() else [])
        if record.reason in ("routed", "explored"):
            chances = [1.0]
            if rate := registry.policy.exploration.rate:
                chances = propensities(np.array(record.utility), rate=rate, loss=1.0).tolist()
            assert record.propensity == pytest.approx(chances[0])
            assert record.propensities == pytest.approx(chances if chances[0] < 1 else [])
    seen = load_experience(frame_of([records], []), categories=categories, experts=assignment.experts).experience
    again = utility(seen, charged)
    for row, record in zip(again, records, strict=True):
        chosen = row[assignment.experts.index(record.expert)]
        assert (record.reason == "explored") == (chosen < row.max())
