"""One expert over one or more replicas: selects a replica for each call and records the outcome.

`Replica` is one server with its breaker. `ReplicatedExpert` selects among the ready ones: by conversation (rendezvous
hashing, for the prefix cache) with bounded load, else by least work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from typing import Literal, Self

from coe.core import Call, Chunks, Expert, Health, Reply
from coe.errors import Cause, ExpertBusy, ExpertError, ExpertUnavailable, ExpertUnreachable
from coe.experts.outcomes import COOL_DOWN, Breaker, Incidents, State
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.urls import redact_url, remove_suffix

LOAD_BOUND = 1.25
"""A conversation leaves its own replica if that has more than LOAD_BOUND times the mean work, plus one request
(consistent hashing with bounded loads, Mirrokni et al. 2018, arXiv 1608.01350)."""
_outstanding = attrgetter("outstanding")
_MASK = 2**64 - 1
_MULTIPLIER = 0x9E3779B97F4A7C15


class Replica:
    """One server of an expert.

    `in_flight` counts its requests from this process until their last byte. `queue_length` is the length of the
    server's own queue, None if it shows none (only vLLM does). `alive` is the result of the last health check, None
    before the first. `address` names the server without credentials. `root` is the URL of its pages, empty for a
    provider's own address. `cause` is that of its last failure. `expert` answers in all its APIs, regardless of the
    breaker. The parameter `chat` is the same expert without the translation of other APIs, None if it translates none.
    """

    def __init__(
        self,
        expert: Expert,
        *,
        chat: Expert | None = None,
        endpoint: Endpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expert = expert
        self._chat = chat
        base = endpoint.base_url if endpoint else ""
        self.address = redact_url(remove_suffix(base, "/v1")).partition("://")[2] or "provider"
        self.root = remove_suffix(base, "/v1")
        self.seed = int.from_bytes(blake2b((base or self.address).encode(), digest_size=8).digest(), "little")
        self.breaker = Breaker(clock=clock)
        self.in_flight = 0
        self.queue_length: int | None = None
        self.alive: bool | None = None
        self.cause: Cause | Literal[""] = ""
        self.incidents = Incidents(expert.name, clock=clock)

    @property
    def state(self) -> State:
        return self.breaker.state

    @property
    def outstanding(self) -> int:
        """Requests that a new one would share the server with or wait behind."""
        return self.in_flight + (self.queue_length or 0)

    async def stream(self, call: Call) -> Reply:
        """Sends a call to this server; the breaker records the outcome. Raises what its expert raises."""
        breaker = self.breaker
        generation = breaker.begin()
        self.in_flight += 1
        plain = call.api == "chat" and not call.renames_limit
        expert = self._chat if plain and self._chat is not None else self.expert
        try:
            reply = await expert.stream(call)
        except BaseException as error:
            self.in_flight -= 1
            self._record_failure(error, generation)
            raise
        breaker.answered(generation)
        return TrackedReply(reply, partial(self._reply_ended, generation))

    async def aclose(self) -> None:
        await self.expert.aclose()

    def _reply_ended(self, generation: int, error: BaseException | None, complete: bool) -> None:
        """Records the end of a reply: broken off by `error`, `complete`, or abandoned by its reader."""
        self.in_flight -= 1
        if error is not None:
            self._record_failure(error, generation)
        elif complete:
            self.breaker.succeeded(generation)
            self.incidents.answered()
        else:
            self.breaker.cancelled(generation)

    def _record_failure(self, error: BaseException, generation: int) -> None:
        if not isinstance(error, ExpertError) or not error.request_sent or error.cause == "gateway_limit":
            self.breaker.cancelled(generation)
            return
        self.incidents.failed(error, address=self.address)
        if error.unhealthy:
            self.cause = error.cause
            self.breaker.failed(generation)
        else:
            self.breaker.succeeded(generation)
        if isinstance(error, ExpertBusy) and error.retry_after is not None:
            self.cause = error.cause
            self.breaker.throttle(error.retry_after)


class TrackedReply:
    """A reply that reports its end once: `ended(error, complete)` is called after the last byte, when an ExpertError
    breaks it off, or when its reader abandons it."""

    __slots__ = ("_ended", "_reply", "media_type", "usage")

    def __init__(self, reply: Reply, ended: Callable[[BaseException | None, bool], None]) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._ended: Callable[[BaseException | None, bool], None] | None = ended

    def chunks(self) -> Chunks:
        return _TrackedChunks(self._reply.chunks(), self)

    async def aclose(self) -> None:
        self.end()
        await self._reply.aclose()

    def end(self, error: BaseException | None = None, *, complete: bool = False) -> None:
        """Report the end, once."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error, complete)


class _TrackedChunks:
    """The chunks of a TrackedReply. An iterator, as the event loop registers each asynchronous generator."""

    __slots__ = ("_chunks", "_tracked")

    def __init__(self, chunks: Chunks, tracked: TrackedReply) -> None:
        self._chunks = chunks
        self._tracked = tracked

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            self._tracked.end(complete=True)
            raise
        except ExpertError as error:
            self._tracked.end(error)
            raise

    async def aclose(self) -> None:
        await self._chunks.aclose()


class ReplicatedExpert:
    """Sends each call to the most suitable replica; the only Expert that the layers above see.

    If a replica cannot be reached, the same call tries another one; servers in `call.exclude` are not tried. If no
    replica is ready, the call fails at once with ExpertBusy (all are throttled) or ExpertUnavailable, and the time of
    the next trial.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        endpoints: tuple[Endpoint, ...] = (),
        *,
        replicas: Sequence[Replica],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.endpoints = endpoints
        self.replicas = tuple(replicas)
        self.incidents = Incidents(spec.name, clock=clock)
        for replica in self.replicas:
            replica.incidents = self.incidents
        self._limit = spec.concurrent_requests
        self._clock = clock
        self._free = Health(ready_replicas=len(self.replicas))
        """The health while all replicas are healthy and none has a queue."""
        self._rotation = 0

    @property
    def health(self) -> Health:
        """Computed from the ready replicas. Without a declared `concurrent_requests`, an expert is overloaded if each
        of them has a queue."""
        if self._limit is None:
            for replica in self.replicas:
                if not replica.breaker.healthy or replica.queue_length:
                    break
            else:
                return self._free  # the usual case, which every request needs of every expert
        ready = self._ready(())
        return Health(bool(ready), self._load(ready), len(ready), "" if ready else self._cause())

    def _cause(self) -> Cause:
        """The reason why no replica is ready."""
        return next((replica.cause for replica in self.replicas if replica.cause), "circuit_open")

    async def stream(self, call: Call) -> Reply:
        """Calls the best replica; returns with the first chunk. Raises an ExpertError, or InvalidRequest."""
        if self.spec.stream_idle_timeout is not None:
            call = replace(call, stream_idle_timeout=self.spec.stream_idle_timeout)
        failure: ExpertUnreachable | None = None
        tried: tuple[Replica, ...] = ()
        if call.exclude:
            tried = tuple(replica for replica in self.replicas if replica.address in call.exclude)
        if len(tried) == len(self.replicas):
            raise self._all_excluded(call)
        while call.first_token_timeout > 0 and (ready := self._ready(tried)):
            replica = ready[0] if len(ready) == 1 else self._best(ready, call.conversation)
            began = self._clock()
            try:
                return await replica.stream(call)
            except ExpertUnreachable as error:
                failure, tried = error, (*tried, replica)
                call = replace(call, first_token_timeout=call.first_token_timeout - (self._clock() - began))
            except ExpertUnavailable as error:
                if error.queue_full and not self.spec.addresses:  # a local server: all experts on it share its queue
                    error.unavailable_servers = call.exclude | {replica.address}
                raise
        if failure is not None:
            failure.unavailable_servers = frozenset(replica.address for replica in tried if replica.root)
        raise failure or self._none_ready()

    def _ready(self, exclude: Collection[Replica]) -> Sequence[Replica]:
        """The replicas that a request may use now."""
        if not exclude:
            for replica in self.replicas:  # a generator takes twice as long, and every request checks every expert
                if not replica.breaker.healthy:
                    break
            else:
                return self.replicas
        now = self._clock()
        return [replica for replica in self.replicas if replica not in exclude and replica.breaker.ready(now)]

    async def aclose(self) -> None:
        """Closes what the replicas opened for themselves."""
        for replica in self.replicas:
            await replica.aclose()

    def _load(self, ready: Sequence[Replica]) -> float:
        if self._limit is not None:
            return sum(map(_outstanding, ready)) / (self._limit * len(ready)) if ready else 0.0
        for replica in ready:
            if not replica.queue_length:
                return 0.0
        return 1.0 if ready else 0.0

    def _best(self, ready: Sequence[Replica], conversation: bytes) -> Replica:
        if ready is not self.replicas:
            now = self._clock()
            ready = [replica for replica in ready if not replica.breaker.failed_recently(now)] or ready
        if conversation:
            return preferred_replica(ready, conversation)
        self._rotation += 1
        offset = self._rotation % len(ready)
        ready = [*ready[offset:], *ready[:offset]]  # round-robin among equally idle replicas
        return min(ready, key=_outstanding)

    def _all_excluded(self, call: Call) -> ExpertUnreachable:
        error = ExpertUnreachable(
            f"expert {self.name!r} is at a server that this request could not reach or found full", expert=self.name
        )
        error.unavailable_servers, error.request_sent = call.exclude, False
        return error

    def _none_ready(self) -> ExpertError:
        now = self._clock()
        wait = min(replica.breaker.wait(now) for replica in self.replicas) or COOL_DOWN  # 0: a trial is running
        throttled = all(replica.state in ("rate_limited", "closed") for replica in self.replicas)  # closed: excluded
        reason = "is rate limited" if throttled else "failed too often lately"
        error = (ExpertBusy if throttled else ExpertUnavailable)(
            f"expert {self.name!r} {reason}; next attempt in {wait:.1f} s", expert=self.name
        )
        error.retry_after, error.request_sent = wait, False
        error.cause = self._cause()
        return error


def preferred_replica(replicas: Sequence[Replica], conversation: bytes) -> Replica:
    """The conversation's own replica, which has its prefix in cache, unless its work exceeds the load bound; then the
    one with the least work. The same in every process: rendezvous hashing (Thaler and Ravishankar 1998)."""
    key = int.from_bytes(blake2b(conversation, digest_size=8).digest(), "little")
    own, highest = replicas[0], -1
    for replica in replicas:  # multiply: differences reach the high bits; shift: and return to the low ones
        mixed = (key ^ replica.seed) * _MULTIPLIER & _MASK
        weight = (mixed ^ mixed >> 32) * _MULTIPLIER & _MASK
        if weight > highest:
            own, highest = replica, weight
    outstanding = own.outstanding
    if outstanding <= 1 or outstanding <= LOAD_BOUND * sum(map(_outstanding, replicas)) / len(replicas) + 1:
        return own
    return min(replicas, key=_outstanding)
