"""What the endpoints of the routing log take and tell."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from coe import errors
from coe.core import Reason
from coe.feedback import Feedback
from coe.records.fields import FIELDS, schema_of
from coe.records.record import LogQuery, RoutingRecord
from coe.registry import Registry
from coe.routing.replay import Again
from gateway.endpoints.admin.operation import Schema

MOST = 200
LONGEST = 128
FARTHEST = 32_503_680_000.0  # the year 3000
_Value = Annotated[str, Field(max_length=LONGEST)]
_Time = Annotated[float, Field(ge=0, le=FARTHEST)]

SHOWN = tuple(field.name for field in FIELDS if field.about.api == "list")
"""Fields of each record in a list."""
WHOLE = tuple(field.name for field in FIELDS if field.about.api != "none")
"""Fields of a single record."""
ROW_SCHEMA = schema_of([field for field in FIELDS if field.name in SHOWN])
WHOLE_SCHEMA = schema_of([field for field in FIELDS if field.name in WHOLE])
DECIDED = (
    "expert",
    "category",
    "confidence",
    "reason",
    "candidates",
    "worth",
    "price",
    "probabilities",
    "familiarity",
    "stage",
    "overlay",
    "router",
    "config",
    "plan",
    "assignment",
)
"""What of a record its decision was."""


class Search(BaseModel):
    """Which records to list, the newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[str, Field(pattern=r"^([0-9]{1,19}(-[0-9]{1,19})?)?$")] = ""
    since: _Time = 0.0
    until: _Time = FARTHEST
    category: _Value = ""
    expert: _Value = ""
    outcome: _Value = ""
    reason: _Value = ""
    session: _Value = ""
    tenant: _Value = ""
    id: _Value = ""
    limit: Annotated[int, Field(ge=1, le=MOST)] = 50

    def query(self) -> LogQuery:
        fields = self.model_dump(exclude={"id"} | ({"until"} if self.until == FARTHEST else set()))
        return LogQuery(request_id=self.id, **fields)


def search_parameters() -> dict[str, Schema]:
    """Their schemas, by name."""
    found: dict[str, Schema] = Search.model_json_schema()["properties"]
    return {name: {k: v for k, v in schema.items() if k != "title"} for name, schema in found.items()}


def row(record: RoutingRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in SHOWN}


def whole(record: RoutingRecord, said: tuple[Feedback, ...], registry: Registry) -> dict[str, Any]:
    """The record without its embedding, its feedback, and the values that a label may have."""
    told = {name: getattr(record, name) for name in WHOLE}
    feedback = [{name: getattr(event, name) for name in ("kind", "value", "time", "tenant", "key")} for event in said]
    return {"object": "record", **told, "feedback": feedback, "choices": choices(registry)}


def compared(record: RoutingRecord, again: Again, *, categories: tuple[str, ...], versions: Schema) -> dict[str, Any]:
    """Both decisions side by side. A worth of null is that of an expert the plan has not for this category."""
    decision, prediction = again.decision, again.prediction
    now = {
        **{name: getattr(decision, name) for name in ("expert", "category", "reason", "candidates", "worth", "price")},
        "confidence": round(decision.confidence, 5),
        "probabilities": {
            name: round(p, 5) for name, p in zip(categories, prediction.probabilities.tolist(), strict=True)
        },
        "familiarity": prediction.familiarity,
        "stage": prediction.stage,
        "overlay": prediction.overlay,
        **versions,
    }
    then = {name: getattr(record, name) for name in DECIDED}
    return {
        "object": "decision",
        "request_id": record.request_id,
        "source": again.source,
        "needs_known": record.needs is not None,
        "then": then,
        "now": {name: now[name] for name in DECIDED},
    }


def choices(registry: Registry) -> dict[str, list[str]]:
    """What the fields of a search are likely to be."""
    return {
        "category": list(registry.category_names),
        "expert": list(registry.expert_names),
        "reason": list(get_args(Reason)),
        "outcome": ["ok", "aborted", *_codes()],
    }


def _codes() -> list[str]:
    """Codes of the errors that may end a request after it was routed; others leave no record."""
    kinds: list[type[errors.RequestError]] = [errors.ExpertError]
    found = {kind.code for kind in (errors.RequestError, errors.InvalidRequest, errors.Draining)}
    found.add(errors.DeadlineExceeded.code)
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.code)
    return sorted(found)
