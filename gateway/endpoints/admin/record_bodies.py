"""Queries and responses of `/v1/records`: which fields of a routing record are returned where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from coe import errors
from coe.core import Decision, Prediction, Reason
from coe.records.codec import FIELDS, schema_of
from coe.records.feedback import Feedback
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.registry import Registry
from coe.routing.replay import ReplayedDecision
from gateway.endpoints.operation import Schema, list_schema, object_schema

MAX_RECORDS = 200
MAX_VALUE_CHARACTERS = 128
MAX_TIME = 32_503_680_000.0  # the year 3000
_Value = Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS)]
_Time = Annotated[float, Field(ge=0, le=MAX_TIME)]

LIST_FIELDS = tuple(field.name for field in FIELDS if field.info.api == "list")
"""Fields of each record in a list."""
RECORD_FIELDS = tuple(field.name for field in FIELDS if field.info.api != "none")
"""Fields of a single record."""
DECISION_FIELDS = (
    "expert",
    "category",
    "confidence",
    "reason",
    "candidates",
    "utility",
    "price",
    "probabilities",
    "in_distribution",
    "stage",
    "overlay",
    "router",
    "config",
    "plan",
    "assignment",
)
"""Fields that a recorded and a replayed decision are compared in."""


class RecordQuery(BaseModel):
    """Filters of the list, which has the newest records first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[str, Field(pattern=r"^([0-9]{1,19}(-[0-9]{1,19})?)?$")] = ""
    since: _Time = 0.0
    until: _Time = MAX_TIME
    category: _Value = ""
    expert: _Value = ""
    outcome: _Value = ""
    reason: _Value = ""
    session: _Value = ""
    tenant: _Value = ""
    id: _Value = ""
    limit: Annotated[int, Field(ge=1, le=MAX_RECORDS)] = 50

    def log_query(self) -> LogQuery:
        """The same for the log."""
        fields = self.model_dump(exclude={"id", "until"})
        until = math.inf if self.until == MAX_TIME else self.until
        return LogQuery(request_id=self.id, until=until, **fields)


def list_body(page: LogPage, registry: Registry) -> dict[str, Any]:
    """A page of the log. `cursor` continues it; `retention` states how long and what the log stores."""
    return {
        "object": "list",
        "data": [{name: getattr(record, name) for name in LIST_FIELDS} for record in page.records],
        "cursor": page.cursor,
        "damaged": page.damaged,
        "choices": choices(registry),
        "retention": {
            "records": registry.log.keep_records,
            "days": registry.log.keep_days,
            "prompts": registry.log.store_prompts,
        },
    }


def record_body(record: RoutingRecord, feedback: Sequence[Feedback], registry: Registry) -> dict[str, Any]:
    """The record without its embedding, its feedback, and the values that feedback may have."""
    fields = {name: getattr(record, name) for name in RECORD_FIELDS}
    names = ("kind", "value", "time", "tenant", "key")
    events = [{name: getattr(event, name) for name in names} for event in feedback]
    return {"object": "record", **fields, "feedback": events, "choices": choices(registry)}


def replay_body(
    record: RoutingRecord, replay: ReplayedDecision, *, categories: Sequence[str], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The recorded and the replayed decision. A utility of null is that of an expert that the plan does not rate for
    the category."""
    replayed = {**_decision_fields(replay.decision, replay.prediction, categories), **versions}
    return {
        "object": "decision",
        "request_id": record.request_id,
        "source": replay.source,
        "needs_known": record.needs is not None,
        "recorded": {name: getattr(record, name) for name in DECISION_FIELDS},
        "replayed": {name: replayed[name] for name in DECISION_FIELDS},
    }


def _decision_fields(decision: Decision, prediction: Prediction, categories: Sequence[str]) -> dict[str, Any]:
    probabilities = zip(categories, prediction.probabilities.tolist(), strict=True)
    return {
        "expert": decision.expert,
        "category": decision.category,
        "confidence": round(decision.confidence, 5),
        "reason": decision.reason,
        "candidates": decision.candidates,
        "utility": decision.utility,
        "price": decision.price,
        "probabilities": {name: round(probability, 5) for name, probability in probabilities},
        "in_distribution": prediction.in_distribution,
        "stage": prediction.stage,
        "overlay": prediction.overlay_version,
    }


def choices(registry: Registry) -> dict[str, list[str]]:
    """The values that filters and labels may have."""
    return {
        "category": list(registry.category_names),
        "expert": list(registry.expert_names),
        "reason": list(get_args(Reason)),
        "outcome": ["ok", "aborted", *_error_codes()],
    }


def _error_codes() -> list[str]:
    """Codes of the errors that may end a routed request; requests that were not routed have no record."""
    kinds: list[type[errors.RequestError]] = [errors.ExpertError]
    found = {kind.code for kind in (errors.RequestError, errors.InvalidRequest, errors.Draining)}
    found.add(errors.DeadlineExceeded.code)
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.code)
    return sorted(found)


_OBJECT: Schema = {"type": "object"}
ROW_SCHEMA = schema_of([field for field in FIELDS if field.name in LIST_FIELDS])
WHOLE_SCHEMA = schema_of([field for field in FIELDS if field.name in RECORD_FIELDS])
RECORD_SCHEMA = {
    **WHOLE_SCHEMA,
    "properties": {
        "object": {"const": "record"},
        **WHOLE_SCHEMA["properties"],
        "feedback": {"type": "array", "items": _OBJECT},
        "choices": _OBJECT,
    },
}
LIST_SCHEMA = list_schema(ROW_SCHEMA)
LIST_SCHEMA["properties"] |= {"cursor": {"type": "string"}, "damaged": {"type": "integer"}, "choices": _OBJECT}
REPLAY_SCHEMA = object_schema(
    {
        "object": {"const": "decision"},
        "request_id": {"type": "string"},
        "source": {"enum": ["prompt", "posterior"]},
        "needs_known": {"type": "boolean"},
        "recorded": _OBJECT,
        "replayed": _OBJECT,
    }
)
