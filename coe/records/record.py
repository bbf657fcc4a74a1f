"""One request's record in the routing log, and the protocol of the log. Imports `coe.usage` only.

RoutingRecord is the only list of fields: `coe.records.codec` derives every stored and documented form from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from coe.usage import MemberCall


@dataclass(frozen=True, slots=True)
class FieldInfo:
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
class RecipeCall:
    """One call of a recipe to a member, in the record of its request."""

    expert: Annotated[str, FieldInfo("Member that was called.")]
    step: Annotated[int, FieldInfo("Number of the step, from 0.")]
    outcome: Annotated[
        str,
        FieldInfo(
            "`answered`, `unreadable`, `cut_off` by the recipe's `max_tokens`, `unverified`, `cancelled`, or the cause "
            "of the failure; of a judge `graded` or `skipped`."
        ),
    ]
    input_tokens: Annotated[int | None, FieldInfo("Input tokens, as the member counted them.")] = None
    output_tokens: Annotated[int | None, FieldInfo("Output tokens, as the member counted them.")] = None
    ms: Annotated[float, FieldInfo("Milliseconds from the call to the end of the answer.")] = 0.0
    answer_class: Annotated[
        int | None, FieldInfo("Position in this list of the first call with the same final answer.")
    ] = None
    confidence: Annotated[
        float | None, FieldInfo("Probability that the answer is right, 0 to 1; of a judge, that of the graded one.")
    ] = None
    accepted: Annotated[bool, FieldInfo("True for the answer that was returned.")] = False
    drafts: Annotated[
        int, FieldInfo("Number of earlier answers in its request; 0 if it answered from the conversation alone.")
    ] = 0
    cached_tokens: Annotated[int | None, FieldInfo("Input tokens that the member read from its prompt cache.")] = None
    max_tokens: Annotated[int | None, FieldInfo("Cap of the recipe on the answer's tokens; null without one.")] = None

    @classmethod
    def of(cls, call: MemberCall) -> RecipeCall:
        """Return the record of a call that has ended."""
        usage = call.usage
        return cls(
            call.expert,
            call.step,
            call.outcome,
            usage.input_tokens if usage else None,
            usage.output_tokens if usage else None,
            round(call.ms, 3),
            call.answer_class,
            call.confidence,
            call.accepted,
            call.drafts,
            usage.cached_tokens if usage else None,
            call.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """One routed request's record, schema version 1. Times are Unix seconds, durations milliseconds.

    To add a field, add one line with its type, its meaning and a default, and fill it in `record_of` of
    `gateway.observability.observers`. Never change a default, as stored records leave it out. A record holds enough to
    decide the request again offline (`coe.routing.replay`).
    """

    request_id: Annotated[str, FieldInfo("Identifier of the request, from `x-request-id`.", api="list", column=True)]
    time: Annotated[float, FieldInfo("Arrival time in Unix seconds.", api="list", column=True)]
    category: Annotated[
        str, FieldInfo("Category of the request; empty if it failed before classification.", api="list", column=True)
    ]
    confidence: Annotated[
        float, FieldInfo("Probability of the most likely category times `in_distribution`, 0 to 1.", api="list")
    ]
    expert: Annotated[
        str,
        FieldInfo(
            "Expert or arm of a recipe that answered or failed last; empty without one.",
            api="list",
            column=True,
        ),
    ]
    reason: Annotated[
        str,
        FieldInfo("Reason for the choice: routed, uncertain, sticky, pinned, fallback, ...", api="list", column=True),
    ]
    propensity: Annotated[float, FieldInfo("Probability with which the first candidate was chosen.")]
    candidates: Annotated[tuple[str, ...], FieldInfo("Experts in the order in which they were to be tried.")]
    probabilities: Annotated[Mapping[str, float], FieldInfo("Probability of each category, to five digits.")]
    stage: Annotated[str, FieldInfo("Part of the router that classified the text.")]
    router: Annotated[str, FieldInfo("Version of the router, as in `coe versions`.")]
    config: Annotated[str, FieldInfo("Digest of experts.yaml.")]
    digest: Annotated[str, FieldInfo("SHA-256 of the routed text.", private=True)]
    outcome: Annotated[str, FieldInfo("`ok`, `aborted` (the client left) or an error code.", api="list", column=True)]
    attempts: Annotated[int, FieldInfo("Number of calls to experts that were started.", api="list")]
    stream: Annotated[bool, FieldInfo("True if the client requested a stream.", api="list")]
    routing_ms: Annotated[float, FieldInfo("Milliseconds from arrival to the decision.")]
    first_token_ms: Annotated[
        float | None, FieldInfo("Milliseconds from arrival to the first token; null if none came.", api="list")
    ]
    total_ms: Annotated[float, FieldInfo("Milliseconds from arrival to the end of the answer.", api="list")]
    in_distribution: Annotated[
        float, FieldInfo("Probability that the text is of a kind the router was trained on.")
    ] = 1.0
    cost_weight: Annotated[float, FieldInfo("Cost weight of the request: 0 best answer, 1 cheapest.")] = 0.0
    input_tokens: Annotated[int | None, FieldInfo("Input tokens, as the expert counted them.", api="list")] = None
    output_tokens: Annotated[int | None, FieldInfo("Output tokens, as the expert counted them.", api="list")] = None
    cached_tokens: Annotated[
        int | None,
        FieldInfo("Input tokens that the expert read from its prompt cache, a part of `input_tokens`.", api="list"),
    ] = None
    session: Annotated[
        str | None, FieldInfo("Value of the client's `x-session-id` header.", api="list", column=True)
    ] = None
    api: Annotated[str, FieldInfo("API of the request: chat, responses, messages, ...", api="list")] = "chat"
    tenant: Annotated[str | None, FieldInfo("Tenant of the API key.", api="list", column=True)] = None
    key: Annotated[str | None, FieldInfo("Name of the API key.", api="list")] = None
    cost: Annotated[float | None, FieldInfo("US dollars by the expert's declared prices.", api="list")] = None
    prompt: Annotated[
        str | None, FieldInfo("Routed text; stored only if `log.store_prompts` is set.", private=True)
    ] = None
    left_out: Annotated[
        tuple[str, ...],
        FieldInfo("Parts of the messages that were not routed; stored only with the routed text.", private=True),
    ] = ()
    dropped: Annotated[
        tuple[str, ...],
        FieldInfo("Types of tools and items, and names of fields, that were left out (`x-coe-dropped`)."),
    ] = ()
    embedding: Annotated[
        bytes | None,
        FieldInfo(
            "Float16 vector of the text; stored only if `log.store_embeddings` is set.", api="none", private=True
        ),
    ] = field(default=None, repr=False)
    assignment: Annotated[str, FieldInfo("Digest of the assignment in effect over the router's categories.")] = ""
    utility: Annotated[
        tuple[float, ...],
        FieldInfo(
            "Expected quality less price of each candidate, to four digits; null if it may not serve the category or "
            "was never measured."
        ),
    ] = ()
    price: Annotated[
        tuple[float, ...], FieldInfo("Price subtracted for each candidate, to four digits; empty if all are free.")
    ] = ()
    exploration: Annotated[
        tuple[float, float] | None, FieldInfo("Exploration rate and largest quality loss; null if it was off.")
    ] = None
    router_probabilities: Annotated[
        Mapping[str, float] | None, FieldInfo("The router's own probabilities, before a rule.")
    ] = None
    retrieval: Annotated[
        str, FieldInfo("Result of retrieval: none, off, skipped, empty, failed, withheld or used.", api="list")
    ] = "none"
    gate: Annotated[float | None, FieldInfo("Probability that passages improve this expert's answer.")] = None
    gain: Annotated[float | None, FieldInfo("Quality expected of the passages.")] = None
    trial: Annotated[str, FieldInfo("Version of the retrieval gate if a random draw replaced its decision.")] = ""
    passages: Annotated[tuple[str, ...], FieldInfo("Identifiers of the passages given to the expert.")] = ()
    passage_tokens: Annotated[int, FieldInfo("Approximate number of tokens of these passages.")] = 0
    retrieval_ms: Annotated[float, FieldInfo("Milliseconds that retrieval took.")] = 0.0
    needs: Annotated[tuple[str, ...] | None, FieldInfo("Capabilities that the request needs; null if unknown.")] = None
    purpose: Annotated[
        str, FieldInfo("CoE command that sent the request: score or chat; empty for a user's.", api="list")
    ] = ""
    fallback_from: Annotated[
        str, FieldInfo("First choice that did not answer, if another expert answered; else empty.", api="list")
    ] = ""
    cause: Annotated[
        str, FieldInfo("Why the first choice did not answer or the request failed; empty otherwise.", api="list")
    ] = ""
    recipe: Annotated[str, FieldInfo("Recipe that was called; empty if none was.", api="list")] = ""
    recipe_stop: Annotated[
        str, FieldInfo("Why the recipe stopped: accepted, last_step, stream_hold, ...; empty without one.")
    ] = ""
    steps: Annotated[tuple[RecipeCall, ...], FieldInfo("Calls of the recipe to its members.")] = ()
    cache: Annotated[
        str,
        FieldInfo(
            "`hit`: the answer is from the cache, at no cost; `miss`; empty if the cache was not used.", api="list"
        ),
    ] = ""
    model: Annotated[str, FieldInfo("Value of `model` in the request, at most 256 characters.", api="list")] = ""
    resolved_model: Annotated[
        str,
        FieldInfo("Model that `model` stands for: `auto`, or the name of an expert or recipe."),
    ] = ""
    language: Annotated[
        str,
        FieldInfo(
            "ISO 639 code of the request's language: `en`, `de`, ...; `und` for another one that was not identified.",
            api="list",
        ),
    ] = ""
    only_local: Annotated[
        bool,
        FieldInfo("True if only local experts may have received the request; its text is never stored.", api="list"),
    ] = False
    excluded: Annotated[
        tuple[str, ...],
        FieldInfo("Experts that the list of the API key or `only_local` excluded."),
    ] = ()
    limited: Annotated[
        bool,
        FieldInfo("True if the API key has a list of experts, or key, rule or header limits it to local experts."),
    ] = False
    plan: Annotated[str, FieldInfo("Version of the plan in use; empty for the declared assignment.")] = ""
    unpriced: Annotated[
        int,
        FieldInfo(
            "Number of calls that reached an expert and whose tokens no server counted, as they failed, timed out or "
            "were abandoned. They are not part of `cost`; a key's limits charge their estimate.",
            api="list",
        ),
    ] = 0
    rule: Annotated[str, FieldInfo("Rule of experts.yaml that applied; empty if none did.", api="list")] = ""
    schema: Annotated[int, FieldInfo("Version of this list of fields.")] = 1

    def is_by(self, router: str, *, categories: Collection[str]) -> bool:
        """Returns True if this router version classified the request, over exactly these categories: experts.yaml may
        have added or removed some since."""
        return self.router == router and self.probabilities.keys() == set(categories)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """A selection of records. Empty fields match everything; `since` and `until` are in Unix seconds, both inclusive.

    `after` is the cursor of the last record read, as returned by `RoutingLog.read`; `before` that of the oldest one, as
    returned by `RoutingLog.back`. `request_id` is a prefix. A record that was appended more than an hour after its time
    may be missed by `until`.
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
    """Some records in the order they were appended (`back`: newest first), the cursor after the last entry read, and
    the number of damaged entries that were skipped."""

    records: tuple[RoutingRecord, ...]
    cursor: str
    damaged: int = 0


def observed(
    pages: Iterable[Sequence[RoutingRecord]], add: Callable[[RoutingRecord], None]
) -> Iterator[Sequence[RoutingRecord]]:
    """Pass pages of records through unchanged, and call `add` with each record."""
    for page in pages:
        for record in page:
            add(record)
        yield page


class RoutingLog(Protocol):
    """Stores records. Appending the same request_id twice keeps one. Raises StoreError when the store cannot be used.

    `tail` returns the newest `limit` matching records, oldest of them first. `read` goes forward from a cursor, and
    returns an empty page with the same cursor when nothing is new. `back` goes backward from a cursor, newest first,
    and returns an empty cursor when nothing older is left; it scans a bounded number of entries a call, and may return
    few or no records with a cursor to continue from. `find` returns one record, None if it does not exist or was
    deleted.
    """

    async def append(self, records: Sequence[RoutingRecord]) -> None: ...

    async def read(self, query: LogQuery) -> LogPage: ...

    async def tail(self, query: LogQuery) -> LogPage: ...

    async def back(self, query: LogQuery) -> LogPage: ...

    async def find(self, request_id: str) -> RoutingRecord | None: ...

    async def aclose(self) -> None: ...
