"""The administrators' endpoints, each for keys with the scope `admin`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from gateway.access.authorization import guarded
from gateway.admin import status
from gateway.endpoints.admin import artifacts, experts, mapping, onboarding, records, stats
from gateway.endpoints.admin.operation import Operation
from gateway.serving_state import Current

if TYPE_CHECKING:
    from gateway.app import Parts

OPERATIONS: tuple[Operation, ...] = (
    *stats.OPERATIONS,
    *records.OPERATIONS,
    *mapping.OPERATIONS,
    *artifacts.OPERATIONS,
    *status.OPERATIONS,
    *onboarding.OPERATIONS,
    *experts.OPERATIONS,
)


def admin_routes(parts: Parts) -> list[Route]:
    """What answers them, over what is served with now."""
    current = parts.current
    return [
        *_routes(stats.Stats(parts), stats.OPERATIONS, current),
        *_routes(mapping.Map(parts), mapping.OPERATIONS, current),
        *_routes(artifacts.Artifacts(parts), artifacts.OPERATIONS, current),
        *_routes(status.Status(parts), status.OPERATIONS, current),
        *_routes(onboarding.Adding(parts), onboarding.OPERATIONS, current),
        *_routes(experts.Experts(parts), experts.OPERATIONS, current),
        *_routes(records.Records(parts), records.OPERATIONS, current),
    ]


def _routes(view: Any, operations: Iterable[Operation], current: Current) -> list[Route]:
    return [
        Route(one.path, guarded(partial(one.does, view), current, scope="admin"), methods=[one.method])
        for one in operations
    ]
