"""Since when the assignment in use has served all by itself, as the routing log shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from coe.records.record import RoutingRecord


class Tenure:
    """Looks at pages of records that pass through; afterwards `since` is the time (Unix seconds) from which on all
    were decided by the assignment of this digest (its start, as records have it) and explored as declared.

    So neither clocks nor gateways that take a promotion over a little later lead to requests of another policy being
    taken for its own.
    """

    def __init__(self, digest: str, *, exploration: tuple[float, float] | None) -> None:
        self._digest, self._exploration = digest, exploration
        self.since = 0.0

    def watched(self, pages: Iterable[Sequence[RoutingRecord]]) -> Iterator[Sequence[RoutingRecord]]:
        """The same pages."""
        for page in pages:
            for record in page:
                if not self._own(record):
                    self.since = max(self.since, math.nextafter(record.time, math.inf))
            yield page

    def _own(self, record: RoutingRecord) -> bool:
        decided = bool(record.assignment) and self._digest.startswith(record.assignment)
        return not record.category or (decided and record.exploration == self._exploration)
