"""The outcome of an audit: whether an answer that a recipe accepted early differs from the one after its last step.

It becomes known after the record of its request, so it is an event of the feedback log (kind `audit`), joined by the
request's id. `coe.learning.recipes.loss_test` counts the events; `gateway.request.audits` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from coe.records.codec import CALL_FIELDS, read_values
from coe.records.record import RecipeCall

AuditOutcome = Literal[
    "agreed",
    "differed",
    "last_step",
    "failed",
    "cancelled",
    "skipped_busy",
    "skipped_draining",
    "skipped_large_body",
    "skipped_not_delivered",
    "skipped_unavailable",
    "skipped_unreadable",
]
"""`last_step`: all members had been called, so nothing was compared. `failed`: no member of the last step answered in
time. `cancelled`: the process ended. `skipped_busy`: too many audits run. `skipped_draining`: the process is about to
end. `skipped_large_body`: the request's body is large. `skipped_not_delivered`: the client did not get the whole
answer. `skipped_unavailable`: a member is down, overloaded or asleep. `skipped_unreadable`: the answer has no answer
class."""
AUDIT_OUTCOMES: tuple[AuditOutcome, ...] = get_args(AuditOutcome)
SKIPPED = frozenset(outcome for outcome in AUDIT_OUTCOMES if outcome.startswith("skipped_"))
"""Outcomes of draws that were given up before answers were compared."""


@dataclass(frozen=True, slots=True)
class AuditDetail:
    """The recipe that an audit compared, and the cost of its calls.

    `arm` of `recipe` answered with the fitted policies of this version (empty without any). `rate` is the probability
    with which its answers are audited. `calls` are the audit's own, `ms` their duration in milliseconds, and `cost` is
    in US dollars, None if unknown. The operator pays for them: no key is charged.
    """

    recipe: str
    arm: str
    policies: str
    rate: float
    ms: float = 0.0
    cost: float | None = None
    calls: tuple[RecipeCall, ...] = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> AuditDetail:
        """Parse a decoded JSON object. Raises KeyError, TypeError or ValueError."""
        calls = tuple(RecipeCall(**read_values(CALL_FIELDS, call)) for call in found["calls"])
        cost = None if found["cost"] is None else float(found["cost"])
        recipe, arm, policies = (str(found[name]) for name in ("recipe", "arm", "policies"))
        return cls(recipe, arm, policies, float(found["rate"]), float(found["ms"]), cost, calls)
