"""One request's line in the routing log, and the log itself as a Protocol; imports nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """One routed request's line in the routing log, schema version 1. Times are Unix seconds, durations milliseconds.

    Complete enough to re-decide the request offline: the posterior (by category name, in `probabilities`, to five
    digits), the text's `familiarity`, the `thrift` asked for, the order of `candidates` and the `worth` of each
    (expected quality less price, to four digits, -inf for one that may not serve the category; empty for a pin), the
    `price` that was taken off for each (by the plan and for thrift; empty where everything is free), the chosen expert,
    the propensity of the first candidate, the `exploration` that served (its rate and loss, None where it was off), and
    the versions of router, configuration and `assignment` (the digest of the plan or of the declared mapping, over the
    router's categories). Where an overlay of the tenant made the posterior, `overlay` is the version
    of the overlays and `plain` the router's own posterior. `digest` is the SHA-256 of the routed text; the text itself
    (`prompt`) and its embedding (`embedding`, float16 bytes) are kept only where experts.yaml says so. `tenant` and
    `key` name whose request it was, `cost` is in US dollars by the expert's declared prices.
    `retrieval` says whether documents were consulted (none, off, shut, empty, failed, held, open), `gate` how probable
    it is that they improve this expert's answer and `gain` how much quality is expected of them, None where no gate was
    asked, `trial` the version of the gate where a coin decided between held and open in its place, `passages` the ids
    of those it was given, `passage_tokens` about how many tokens they are, `retrieval_ms` how long the consultation
    took.
    `needs` are the capabilities that the request asked of an expert, None in records of before they were written down.
    `outcome` is `ok`, `aborted` (the client left), or the `code` of the error, `attempts` how many asks had begun by
    then.
    """

    request_id: str
    time: float
    category: str
    confidence: float
    expert: str
    reason: str
    propensity: float
    candidates: tuple[str, ...]
    probabilities: Mapping[str, float]
    stage: str
    router: str
    config: str
    digest: str
    outcome: str
    attempts: int
    stream: bool
    routing_ms: float
    first_piece_ms: float | None
    total_ms: float
    familiarity: float = 1.0
    thrift: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    session: str | None = None
    api: str = "chat"
    tenant: str | None = None
    key: str | None = None
    cost: float | None = None
    prompt: str | None = None
    embedding: bytes | None = field(default=None, repr=False)
    assignment: str = ""
    worth: tuple[float, ...] = ()
    price: tuple[float, ...] = ()
    exploration: tuple[float, float] | None = None
    overlay: str = ""
    plain: Mapping[str, float] | None = None
    retrieval: str = "none"
    gate: float | None = None
    gain: float | None = None
    trial: str = ""
    passages: tuple[str, ...] = ()
    passage_tokens: int = 0
    retrieval_ms: float = 0.0
    needs: tuple[str, ...] | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which records to read. Empty fields match everything; `since` and `until` are in Unix seconds, both included.

    `after` is the cursor of the last record already seen, as returned by `RoutingLog.read`; `before` that of the oldest
    one, as returned by `RoutingLog.back`. `request_id` is how the id begins. A record that came into the log more than
    an hour after its time may be missed by `until`.
    """

    after: str = ""
    before: str = ""
    since: float = 0.0
    until: float = math.inf
    category: str = ""
    expert: str = ""
    outcome: str = ""
    reason: str = ""
    session: str = ""
    tenant: str = ""
    request_id: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some records in the order they were appended (`back`: the newest first), the cursor after the last one looked at,
    and how many entries on the way there were damaged and left out."""

    records: tuple[RoutingRecord, ...]
    cursor: str
    damaged: int = 0


class RoutingLog(Protocol):
    """Where records live. Appending the same request_id twice keeps one. Raises LogError when the store cannot be used.

    `tail` returns the newest `limit` matching records, oldest of them first; `read` walks forward from a cursor and
    returns an empty page with the same cursor when nothing is new; `back` walks backward from a cursor, newest first,
    and returns an empty cursor when nothing older is left. It looks at so many entries a call at most, and may return
    few or none with a cursor to go on from. `find` returns one record, None where it is not there or not there any
    more.
    """

    async def append(self, records: Sequence[RoutingRecord]) -> None: ...

    async def read(self, query: LogQuery) -> LogPage: ...

    async def tail(self, query: LogQuery) -> LogPage: ...

    async def back(self, query: LogQuery) -> LogPage: ...

    async def find(self, request_id: str) -> RoutingRecord | None: ...

    async def aclose(self) -> None: ...
