"""Values the decisions of any router on the rated requests of the routing log, off-policy.

`coe benchmark --decisions FILE` compares them with the plan in use, a random choice and each single expert.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.active_state import load_active_state
from coe.errors import DataError
from coe.learning.experience import NONE, Experience, load_experience
from coe.learning.log_frame import open_logs
from coe.learning.moves import MAX_UNSUPPORTED
from coe.learning.off_policy import BanditLog, greedy_policy
from coe.learning.plan_candidate import MIN_SERVED
from coe.learning.refit import agreements, trust_of
from coe.measuring.tables import read_table
from coe.planning.assignment import Assignment
from coe.planning.problem import relative_cost
from coe.settings import Settings
from coe.trials.evidence import policy_interval

Array = NDArray[np.float64]
ERROR = 0.05
"""Probability that any interval of a report does not hold."""


def value_decisions(settings: Settings, file: Path) -> dict[str, Any]:
    """Return the report on a file of decisions (columns request_id and expert), JSON-able.

    Raises DataError where the file cannot be read, or where the log cannot support the decisions, with the remedy.
    """
    in_use = load_active_state(settings)
    policy, assignment = in_use.registry.policy, in_use.assignment
    charge = policy.cost_weight * relative_cost(in_use.registry, assignment.experts)
    decisions = read_decisions(file, assignment.experts)
    with open_logs(in_use.registry.log.url, base=settings.home) as logs:
        frame = logs.frame(since=0.0, until=time.time())
    loaded = load_experience(frame, categories=in_use.router.categories, experts=assignment.experts)
    experience, names = loaded.experience, loaded.frame.table["request_id"].to_pylist()
    decided = np.array([decisions.get(name, NONE) for name in names])
    rows = experience.usable_off_policy & (decided != NONE)
    rows &= trust_of(experience, agreements(experience)) == 1.0
    rated, decided = experience.part(rows), decided[rows]
    if len(rated) < MIN_SERVED:
        raise DataError(
            f"{file}: {len(rated)} of its {len(decisions)} decisions are about requests that expected quality decided "
            f"and somebody rated; {MIN_SERVED} are needed. Rate more answers (POST /v1/feedback)"
        )
    unsupported = float((rated.propensities[np.arange(len(rated)), decided] == 0).mean())
    if unsupported > MAX_UNSUPPORTED:
        raise DataError(
            f"{file}: {unsupported:.0%} of its decisions could not have been made when the log was written, so it does "
            f"not tell what they are worth. Let all experts be explored for a while, in {settings.config}:\n"
            f"policy: {{exploration: {{rate: {policy.exploration.rate or 0.05:g}, max_quality_loss: 1}}}}"
        )
    found = compare_decisions(rated, decided, replace(assignment, price=assignment.price + charge))
    return {"requests": len(rated), "decisions": len(decisions), "policies": found}


def read_decisions(file: Path, experts: Sequence[str]) -> dict[str, int]:
    """Return the index of the expert by request id. Raises DataError with the row of an unknown one."""
    table = read_table(file, needed=("request_id", "expert"))
    chosen = table.texts("expert")
    if unknown := sorted(set(chosen) - set(experts)):
        row, names = chosen.index(unknown[0]) + 1, ", ".join(experts)
        raise DataError(f"{file}: row {row}: {unknown[0]!r} is not in the plan in use, which has {names}")
    return dict(zip(table.texts("request_id"), map(experts.index, chosen), strict=True))


def compare_decisions(rated: Experience, decided: NDArray[np.int64], assignment: Assignment) -> list[dict[str, Any]]:
    """Return the value of the decisions (n,) and of other policies, with the difference of the decisions from each.

    All intervals hold at once, whenever the log is read.
    """
    log, each = BanditLog.of(rated), np.eye(len(rated.experts))
    policies = {
        "yours": each[decided],
        "the plan in use": greedy_policy(rated, assignment),
        "random": rated.allowed / rated.allowed.sum(axis=1, keepdims=True),
        **{f"always {name}": np.tile(row, (len(rated), 1)) for name, row in zip(rated.experts, each, strict=True)},
    }

    def interval(policy: Array) -> dict[str, float]:
        observed = log.chosen, log.reward, log.propensities, log.modelled
        return policy_interval(*observed, policy, error=ERROR / (2 * len(policies) - 1))._asdict()

    return [
        {"policy": name, **interval(policy), "gain": interval(policies["yours"] - policy)}
        | {"unsupported": float((policy * (log.propensities == 0)).sum(axis=1).mean())}
        for name, policy in policies.items()
    ]
