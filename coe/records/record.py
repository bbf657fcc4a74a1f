"""One request's line in the routing log, and the log itself as a Protocol; imports nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol


@dataclass(frozen=True, slots=True)
class About:
    """Documentation and handling of one record field.

    `api` is the first view of `/v1/records` that shows the field: the `list`, the single `record`, or `none`. A
    `column` field has a column in the SQLite log, and `LogQuery` filters by it. A `private` field holds or reveals the
    user's text; `coe log export --redact` empties it.
    """

    meaning: str
    api: Literal["list", "record", "none"] = "record"
    column: bool = False
    private: bool = False


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """One routed request's line in the routing log, schema version 1. Times are Unix seconds, durations milliseconds.

    This is the only list of the fields: the JSON, SQLite and parquet forms, the API's schema and docs/records.md follow
    from it (`coe.records.fields`). To add a field, add one line with its type, its meaning and a default.
    A record is complete enough to decide the request again offline (`coe.routing.replay`).
    """

    request_id: Annotated[str, About("Identifier of the request, from `x-request-id`.", api="list", column=True)]
    time: Annotated[float, About("Arrival time in Unix seconds.", api="list", column=True)]
    category: Annotated[
        str, About("Category of the request; empty if it failed before classification.", api="list", column=True)
    ]
    confidence: Annotated[
        float, About("Probability of the most likely category times `in_distribution`, 0 to 1.", api="list")
    ]
    expert: Annotated[
        str, About("Expert that answered or failed last; empty if none was chosen.", api="list", column=True)
    ]
    reason: Annotated[
        str, About("Reason for the choice: routed, uncertain, sticky, pinned, fallback, ...", api="list", column=True)
    ]
    propensity: Annotated[float, About("Probability with which the first candidate was chosen.")]
    candidates: Annotated[tuple[str, ...], About("Experts in the order in which they were to be tried.")]
    probabilities: Annotated[Mapping[str, float], About("Probability of each category, to five digits.")]
    stage: Annotated[str, About("Part of the router that classified the text.")]
    router: Annotated[str, About("Version of the router, as in `coe versions`.")]
    config: Annotated[str, About("Digest of experts.yaml.")]
    digest: Annotated[str, About("SHA-256 of the routed text.", private=True)]
    outcome: Annotated[str, About("`ok`, `aborted` (the client left) or an error code.", api="list", column=True)]
    attempts: Annotated[int, About("Number of calls to experts that were started.", api="list")]
    stream: Annotated[bool, About("True if the client asked for a stream.", api="list")]
    routing_ms: Annotated[float, About("Milliseconds from arrival to the decision.")]
    first_token_ms: Annotated[
        float | None, About("Milliseconds from arrival to the first token; null if none came.", api="list")
    ]
    total_ms: Annotated[float, About("Milliseconds from arrival to the end of the answer.", api="list")]
    in_distribution: Annotated[float, About("Probability that the text is of a kind the router was trained on.")] = 1.0
    cost_weight: Annotated[float, About("Cost weight of the request: 0 best answer, 1 cheapest.")] = 0.0
    input_tokens: Annotated[int | None, About("Input tokens, as the expert counted them.", api="list")] = None
    output_tokens: Annotated[int | None, About("Output tokens, as the expert counted them.", api="list")] = None
    session: Annotated[str | None, About("Value of the client's `x-session-id` header.", api="list", column=True)] = (
        None
    )
    api: Annotated[str, About("API of the request: chat, responses, messages, ...", api="list")] = "chat"
    tenant: Annotated[str | None, About("Tenant of the API key.", api="list", column=True)] = None
    key: Annotated[str | None, About("Name of the API key.", api="list")] = None
    cost: Annotated[float | None, About("US dollars by the expert's declared prices.", api="list")] = None
    prompt: Annotated[str | None, About("Routed text; kept only if `log.store_prompts` is set.", private=True)] = None
    embedding: Annotated[
        bytes | None,
        About("Float16 vector of the text; kept only if `log.store_embeddings` is set.", api="none", private=True),
    ] = field(default=None, repr=False)
    assignment: Annotated[str, About("Digest of the assignment in effect over the router's categories.")] = ""
    utility: Annotated[
        tuple[float, ...],
        About(
            "Expected quality less price of each candidate, to four digits; null if it may not serve the category or "
            "was never measured."
        ),
    ] = ()
    price: Annotated[
        tuple[float, ...], About("Price subtracted for each candidate, to four digits; empty if all are free.")
    ] = ()
    exploration: Annotated[
        tuple[float, float] | None, About("Exploration rate and largest quality loss; null if it was off.")
    ] = None
    overlay: Annotated[str, About("Version of the tenant overlay that changed the probabilities.")] = ""
    plain: Annotated[
        Mapping[str, float] | None, About("The router's own probabilities, before the tenant overlay.")
    ] = None
    retrieval: Annotated[
        str, About("Result of retrieval: none, off, skipped, empty, failed, withheld or used.", api="list")
    ] = "none"
    gate: Annotated[float | None, About("Probability that passages improve this expert's answer.")] = None
    gain: Annotated[float | None, About("Quality expected of the passages.")] = None
    trial: Annotated[str, About("Version of the retrieval gate if a random draw replaced its decision.")] = ""
    passages: Annotated[tuple[str, ...], About("Identifiers of the passages given to the expert.")] = ()
    passage_tokens: Annotated[int, About("Approximate number of tokens of these passages.")] = 0
    retrieval_ms: Annotated[float, About("Milliseconds that retrieval took.")] = 0.0
    needs: Annotated[tuple[str, ...] | None, About("Capabilities that the request needs; null if unknown.")] = None
    purpose: Annotated[
        str, About("CoE command that sent the request: score or chat; empty for a user's.", api="list")
    ] = ""
    fallback_from: Annotated[
        str, About("First choice that did not answer, if another expert answered; else empty.", api="list")
    ] = ""
    cause: Annotated[
        str, About("Why the first choice did not answer or the request failed; empty otherwise.", api="list")
    ] = ""
    plan: Annotated[str, About("Version of the plan in use; empty for the declared assignment.")] = ""
    schema: Annotated[int, About("Version of this list of fields.")] = 1

    def is_by(self, router: str, *, categories: Collection[str]) -> bool:
        """Whether the router of this version classified the request, over exactly these categories: experts.yaml may
        have added or dropped some since."""
        return self.router == router and self.probabilities.keys() == set(categories)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which records to read. Empty fields match everything; `since` and `deadline` are in Unix seconds, both included.

    `after` is the cursor of the last record already seen, as returned by `RoutingLog.read`; `before` that of the oldest
    one, as returned by `RoutingLog.back`. `request_id` is how the id begins. A record that came into the log more than
    an hour after its time may be missed by `deadline`.
    """

    after: str = ""
    before: str = ""
    since: float = 0.0
    deadline: float = math.inf
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
