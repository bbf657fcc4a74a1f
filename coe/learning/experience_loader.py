"""Loads experience from the routing log and its feedback, page by page, in memory bounded by the requests kept.

`Logs` reads both logs synchronously, for jobs without an event loop. `load_experience` keeps the newest requests in a
ring buffer of columns, then joins the feedback by a hash of the request's id.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from coe.core import GENERAL, PASS_THROUGH_APIS
from coe.errors import DataError
from coe.learning.experience import NONE, Experience, certainty_rank, reward
from coe.records import open_log_and_feedback
from coe.records.feedback import FEEDBACK_KINDS, Feedback, FeedbackLog, FeedbackPage
from coe.records.record import LogQuery, RoutingLog, RoutingRecord

MAX_REQUESTS = 1_000_000
"""Newest requests that are kept. A million with 14 categories and 9 experts take 100 MB, twice that while they are
sorted, and a learning round on them some 260 MB more (docs/experiments/learning.md)."""
REASONS_WITH_PROPENSITY = frozenset(("routed", "explored"))
"""Reasons for which expected quality chose the expert, so that the logged propensity is its probability."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedExperience:
    """The experience, and the records and feedback left out of it, counted by reason."""

    experience: Experience
    left_out: Mapping[str, int] = field(default_factory=dict)


def load_experience(
    records: Iterable[Sequence[RoutingRecord]],
    feedback: Iterable[Sequence[Feedback]],
    *,
    categories: Sequence[str],
    experts: Sequence[str],
    limit: int = MAX_REQUESTS,
) -> LoadedExperience:
    """Join pages of records, oldest first, with pages of feedback in any order, repeated or not.

    The first of repeated records counts. Of several feedbacks on a request, the most reliable kind counts, then the
    latest. Probabilities of undeclared categories count as general. Left out and counted are records of undeclared
    experts, records of failed requests, and feedback for unknown or another tenant's ids. Raises DataError when nothing
    is left.
    """
    rows = _RingBuffer(categories, experts, limit)
    for page in records:
        for record in page:
            rows.add(record)
    join = _FeedbackJoin(rows)
    for events in feedback:
        for event in events:
            join.add(event)
    return LoadedExperience(join.experience, dict(rows.left_out))


def request_hash(request_id: str) -> int:
    """64 bits of the id's digest: among a million ids, two collide with a probability of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest())


class _RingBuffer:
    """The newest `limit` records as columns of an experience."""

    def __init__(self, categories: Sequence[str], experts: Sequence[str], limit: int) -> None:
        self.rows, self.limit = Experience.blank(categories, experts, limit), limit
        self.category = {name: index for index, name in enumerate(categories)}
        self.expert = {name: index for index, name in enumerate(experts)}
        self.tenants: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        self.count = 0

    def add(self, record: RoutingRecord) -> None:
        chosen = self.expert.get(record.expert)
        if record.outcome not in ("ok", "aborted"):
            self.left_out["failed"] += 1
        elif record.api in PASS_THROUGH_APIS:
            self.left_out["not classified"] += 1
        elif chosen is None:
            self.left_out["of an expert that is not declared"] += 1
        else:
            self._write(self.count % self.limit, record, chosen)
            self.count += 1

    def _write(self, row: int, record: RoutingRecord, chosen: int) -> None:
        rows = self.rows
        posterior, allowed = rows.posterior[row], rows.allowed[row]
        posterior[:] = 0.0
        for name, probability in record.probabilities.items():
            posterior[self.category.get(name, self.category[GENERAL])] += probability
        allowed[:] = False
        allowed[[self.expert[name] for name in record.candidates if name in self.expert]] = True
        allowed[chosen] = True
        rows.chosen[row] = chosen
        rows.propensity[row] = record.propensity if record.reason in REASONS_WITH_PROPENSITY else np.nan
        rows.tenant[row] = self.tenants.setdefault(record.tenant or "", len(self.tenants))
        rows.version[row] = self.versions.setdefault(f"{record.router}/{record.config}", len(self.versions))
        rows.time[row] = record.time
        rows.identity[row] = request_hash(record.request_id)

    def experience(self) -> Experience:
        """The records without their feedback, oldest first; of records with the same id the first. Raises DataError."""
        if not self.count:
            raise DataError(f"the routing log holds nothing to learn from ({dict(self.left_out) or 'no records'})")
        kept = min(self.count, self.limit)
        rows = (np.arange(kept) + (self.count if self.count > self.limit else 0)) % self.limit
        _, first = np.unique(self.rows.identity[rows], return_index=True)
        if repeated := kept - len(first):
            self.left_out["repeated"] = repeated
        found = self.rows.part(rows[np.sort(first)])
        return replace(found, tenants=tuple(self.tenants), versions=tuple(self.versions))


class _FeedbackJoin:
    """Finds the request of each feedback and keeps the feedback that counts.

    It keeps the largest event of a total order, so that arrival order and duplicates do not matter and seen events need
    not be stored.
    """

    def __init__(self, rows: _RingBuffer) -> None:
        self._rows, self.experience = rows, rows.experience()
        self._sorting = np.argsort(self.experience.identity)
        self._identities = self.experience.identity[self._sorting]
        self._time = np.full((2, len(self._identities)), -np.inf)  # of the rating, of the correction
        self._event = np.zeros((2, len(self._identities)), dtype=np.uint64)

    def add(self, event: Feedback) -> None:
        key = np.uint64(request_hash(event.request_id))
        place = int(np.searchsorted(self._identities, key))
        if place == len(self._identities) or self._identities[place] != key:
            self._rows.left_out["feedback for unknown requests"] += 1
            return
        row = int(self._sorting[place])
        if self.experience.tenants[self.experience.tenant[row]] != (event.tenant or ""):
            self._rows.left_out["feedback for another tenant's requests"] += 1
        elif event.kind == "category":
            self._correct(row, event)
        else:
            self._rate(row, event)

    def _correct(self, row: int, event: Feedback) -> None:
        category = self._rows.category.get(str(event.value))
        if category is None:
            self._rows.left_out["corrections to categories that are not declared"] += 1
        elif self._is_later(1, row, event):
            self.experience.corrected[row] = category

    def _rate(self, row: int, event: Feedback) -> None:
        found = self.experience
        known, new = found.kind[row], certainty_rank(event.kind)
        current = len(FEEDBACK_KINDS) if known == NONE else certainty_rank(FEEDBACK_KINDS[known])
        if new < current:
            self._time[0, row] = -np.inf
        if new <= current and self._is_later(0, row, event):
            found.reward[row] = reward(event, expert=found.experts[found.chosen[row]])
            found.kind[row] = FEEDBACK_KINDS.index(event.kind)

    def _is_later(self, which: int, row: int, event: Feedback) -> bool:
        new, known = (event.time, request_hash(event.event_id)), (self._time[which, row], int(self._event[which, row]))
        if new <= known:
            return False
        self._time[which, row], self._event[which, row] = new
        return True


PAGE_SIZE = 2_000
"""Records or events in memory at a time."""


class Logs:
    """Both logs, opened; `damaged` counts the damaged entries read so far. Methods raise StoreError."""

    def __init__(self, runner: asyncio.Runner, records: RoutingLog, feedback: FeedbackLog) -> None:
        self._runner, self._records, self._feedback = runner, records, feedback
        self.damaged = 0

    def records(
        self,
        *,
        since: float = 0.0,
        until: float,
        category: str = "",
        own: Callable[[RoutingRecord], object] | None = None,
    ) -> Iterator[tuple[RoutingRecord, ...]]:
        """Pages of the records of users' requests from `since` to `until` (Unix seconds), oldest first; none is empty.

        `own` receives each record of a request that a CoE command sent (`RoutingRecord.purpose`).
        """
        for page in self.all(since=since, until=until, category=category):
            if own is not None:
                for record in page:
                    if record.purpose:
                        own(record)
            if users := tuple(record for record in page if not record.purpose):
                yield users

    def all(self, *, since: float = 0.0, until: float, category: str = "") -> Iterator[tuple[RoutingRecord, ...]]:
        """Yield pages of the users' requests and of the requests of CoE commands."""
        query = LogQuery(since=since, category=category, limit=PAGE_SIZE)
        while True:
            page = self._runner.run(self._records.read(query))
            self.damaged += page.damaged
            if kept := tuple(record for record in page.records if record.time <= until):
                yield kept
            if page.cursor == query.after or (page.records and not kept):
                return
            query = replace(query, after=page.cursor)

    def pages(self, *, after: str = "") -> Iterator[FeedbackPage]:
        """Pages of feedback after a cursor, in the order it was stored; none is empty."""
        while True:
            page = self._runner.run(self._feedback.read(after=after, limit=PAGE_SIZE))
            self.damaged += page.damaged
            if page.cursor == after:
                return
            after = page.cursor
            yield page

    def feedback(self, *, since: float = 0.0) -> Iterator[tuple[Feedback, ...]]:
        """Pages of the events since a time; requests since then cannot have older feedback."""
        for page in self.pages():
            yield tuple(event for event in page.events if event.time >= since)


@contextmanager
def open_logs(url: str, *, base: Path) -> Iterator[Logs]:
    """Open the logs at `url`; relative paths start at `base`."""
    with asyncio.Runner() as runner:
        records, feedback = open_log_and_feedback(url, base=base)
        try:
            yield Logs(runner, records, feedback)
        finally:
            runner.run(feedback.aclose())
            runner.run(records.aclose())
