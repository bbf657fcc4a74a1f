"""One expert over one or more replicas: selects a replica for each call and records the outcome.

`Replica` is one server with its breaker. `ReplicatedExpert` selects among the ready ones: by conversation (rendezvous
hashing, for the prefix cache) with bounded load, else by least work.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import blake2b
from operator import attrgetter
from typing import Literal

from coe.core import Call, Expert, Health, Reply
from coe.errors import Cause, ExpertBusy, ExpertError, ExpertUnavailable, ExpertUnreachable
from coe.experts.outcomes import COOL_DOWN, Breaker, Incidents, State
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.urls import redact_url, remove_suffix

LOAD_BOUND = 1.25
"""A conversation leaves its own replica if that has more than LOAD_BOUND times the mean work, plus one request
(consistent hashing with bounded loads, Mirrokni et al. 2018, arXiv 1608.01350)."""
_outstanding = attrgetter("outstanding")


class Replica:
    """One server of an expert.

    `in_flight` counts its requests from this process until their last byte. `queue_length` is the length of the
    server's own queue, None if it shows none. `address` names the server without credentials. `root` is the URL of its
    pages, empty for a provider's own address. `cause` is that of its last failure. `expert` answers in all its APIs,
    regardless of the breaker.
    """

    def __init__(
        self,
        expert: Expert,
        *,
        endpoint: Endpoint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expert = expert
        base = endpoint.base_url if endpoint else ""
        self.address = redact_url(remove_suffix(base, "/v1")).partition("://")[2] or "provider"
        self.root = remove_suffix(base, "/v1")
        self.seed = blake2b((base or self.address).encode(), digest_size=16).digest()
        self.breaker = Breaker(clock=clock)
        self.in_flight = 0
        self.queue_length: int | None = None
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
        try:
            reply = await self.expert.stream(call)
        except BaseException as error:
            self.in_flight -= 1
            self._record_failure(error, generation)
            raise
        breaker.answered(generation)
        return TrackedReply(reply, partial(self._reply_ended, generation))

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

    def __init__(self, reply: Reply, ended: Callable[[BaseException | None, bool], None]) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._ended: Callable[[BaseException | None, bool], None] | None = ended

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._reply.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except ExpertError as error:
            self._end(error, False)
            raise
        self._end(None, True)

    async def aclose(self) -> None:
        self._end(None, False)
        await self._reply.aclose()

    def _end(self, error: BaseException | None, complete: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error, complete)


_health = lru_cache(maxsize=256)(Health)
"""Every request needs the health of every expert, which is usually the same."""


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
        self._rotation = 0

    @property
    def health(self) -> Health:
        """Computed from the ready replicas. Without a declared `concurrent_requests`, an expert is overloaded if each
        of them has a queue."""
        ready = self._ready()
        return _health(bool(ready), self._load(ready), len(ready), "" if ready else self._cause())

    def _cause(self) -> Cause:
        """The reason why no replica is ready."""
        return next((replica.cause for replica in self.replicas if replica.cause), "circuit_open")

    async def stream(self, call: Call) -> Reply:
        """Calls the best replica; returns with the first chunk. Raises an ExpertError, or InvalidRequest."""
        if self.spec.stream_idle_timeout is not None:
            call = replace(call, stream_idle_timeout=self.spec.stream_idle_timeout)
        failure: ExpertUnreachable | None = None
        tried = tuple(replica for replica in self.replicas if replica.address in call.exclude)
        if len(tried) == len(self.replicas):
            failure = ExpertUnreachable(f"expert {self.name!r} is at a server that cannot be reached", expert=self.name)
            failure.request_sent = False
            raise failure
        while call.first_token_timeout > 0 and (ready := self._ready(tried)):
            replica = self._best(ready, call.conversation)
            began = self._clock()
            try:
                return await replica.stream(call)
            except ExpertUnreachable as error:
                failure, tried = error, (*tried, replica)
                call = replace(call, first_token_timeout=call.first_token_timeout - (self._clock() - began))
        if failure is not None:
            failure.unavailable_servers = frozenset(replica.address for replica in tried if replica.root)
        raise failure or self._none_ready()

    def _ready(self, exclude: Collection[Replica] = ()) -> list[Replica]:
        """The replicas that a request may use now."""
        now = self._clock()
        return [replica for replica in self.replicas if replica not in exclude and replica.breaker.ready(now)]

    def _load(self, ready: Sequence[Replica]) -> float:
        if self._limit is not None:
            return sum(map(_outstanding, ready)) / (self._limit * len(ready)) if ready else 0.0
        return float(bool(ready) and all(replica.queue_length for replica in ready))

    def _best(self, ready: Sequence[Replica], conversation: bytes) -> Replica:
        now = self._clock()
        ready = [replica for replica in ready if not replica.breaker.failed_recently(now)] or ready
        if conversation:
            return preferred_replica(ready, conversation)
        self._rotation = (self._rotation + 1) % len(ready)  # round-robin among equally idle replicas
        return min([*ready[self._rotation :], *ready[: self._rotation]], key=_outstanding)

    def _none_ready(self) -> ExpertError:
        now = self._clock()
        wait = min(replica.breaker.wait(now) for replica in self.replicas) or COOL_DOWN  # 0: a trial is running
        throttled = all(replica.state == "rate_limited" for replica in self.replicas)
        reason = "is rate limited" if throttled else "has no server that accepts the request"
        message = f"expert {self.name!r} {reason}; next attempt in {wait:.1f} s"
        error = ExpertBusy(message, expert=self.name) if throttled else ExpertUnavailable(message, expert=self.name)
        error.retry_after, error.request_sent = wait, False
        error.cause = self._cause()
        return error


def preferred_replica(replicas: Sequence[Replica], conversation: bytes) -> Replica:
    """The conversation's own replica, which has its prefix in cache, unless its work exceeds the load bound; then the
    one with the least work. The same in every process: rendezvous hashing (Thaler and Ravishankar 1998)."""
    own = max(replicas, key=lambda replica: blake2b(conversation, key=replica.seed, digest_size=8).digest())
    if own.outstanding <= LOAD_BOUND * sum(map(_outstanding, replicas)) / len(replicas) + 1:
        return own
    return min(replicas, key=_outstanding)
