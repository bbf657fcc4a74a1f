"""One expert over one or more replicas: selects a replica for each call and records the outcome.

`Replica` is one server with its breaker. `ReplicatedExpert` selects among the ready ones: by conversation (rendezvous
hashing, for the prefix cache) with bounded load, else by least work. `Breaker` is closed, open after failures, and
half-open for the request that tries the server again; it follows the outcomes of real requests. `Incidents` logs each
cause of failures of an expert once, from the first failure until it answers without it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from operator import attrgetter
from typing import Literal, Self

from coe.core import Call, Chunks, Expert, Health, Reply
from coe.errors import REMEDIES, Cause, ExpertBusy, ExpertError, ExpertUnavailable, ExpertUnreachable
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.urls import redact_url, remove_suffix

State = Literal["closed", "rate_limited", "open", "half_open"]

WINDOW_SIZE = 10
"""Outcomes among which failures are counted. They are not timed, so that the rate means the same at any traffic."""
MAX_FAILURES = 5
"""Failures in the window that open the breaker. Small, because each costs a caller an attempt, and above one, because
healthy servers occasionally refuse or reset a connection."""
COOL_DOWN = 5.0
"""Seconds until a trial, and from one trial to the next."""
MAX_THROTTLE = 60.0
"""Longest time in seconds that one 429 keeps requests away. After that a request checks the server again."""
QUIET_PERIOD = 10.0
"""Seconds without a failure before a success ends an incident. An expert that fails now and then thus logs at most one
start and one end in that time."""
MIN_FAILURES = 3
"""Failures that make an incident an alarm: fewer may come from one odd request."""
_NEVER = float("-inf")
_log = logging.getLogger(__name__)


class Breaker:
    """A state machine over the outcomes of requests.

    Every request calls `begin()` and reports its outcome with the generation number that `begin` returned. Outcomes of
    requests that began before the breaker last opened are stale and change nothing.

    Not thread-safe: it belongs to one event loop. `clock` is in seconds and monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = False
        self._generation = 0
        self._blocked_until = self._failed_at = _NEVER
        self._window: deque[bool] = deque(maxlen=WINDOW_SIZE)  # True: a failure

    @property
    def state(self) -> State:
        """`half_open` while a trial may begin; `rate_limited` while throttled by a 429."""
        if self.ready(self._clock()):
            return "half_open" if self._open else "closed"
        return "open" if self._open else "rate_limited"

    def ready(self, now: float) -> bool:
        """True if a request may begin now."""
        return now >= self._blocked_until

    def wait(self, now: float) -> float:
        """Seconds until a request may begin, unless a trial decides it earlier."""
        return max(self._blocked_until - now, 0.0)

    def failed_recently(self, now: float) -> bool:
        """True if it failed within the last second and has not succeeded since. Other servers are preferred then."""
        return now - self._failed_at < 1.0

    def begin(self) -> int:
        """Starts a request, after `ready` allowed it. Returns the generation for its outcome. A trial blocks others for
        one cool-down, not until it ends: a response that is not streamed may take a healthy server minutes."""
        if self._open:
            self._blocked_until = self._clock() + COOL_DOWN
        return self._generation

    def answered(self, generation: int) -> None:
        """The first chunk arrived. For a trial this closes the breaker."""
        if self._open and generation == self._generation:
            self._open, self._blocked_until = False, _NEVER
            self._window.clear()

    def succeeded(self, generation: int) -> None:
        """The response was complete, or the server rightly rejected the request."""
        if generation == self._generation:
            self.answered(generation)
            self._window.append(False)
            self._failed_at = _NEVER

    def failed(self, generation: int) -> None:
        """The server refused, broke off, timed out or sent an invalid response."""
        if generation != self._generation:
            return
        self._failed_at = self._clock()
        self._window.append(True)
        if self._open or sum(self._window) >= MAX_FAILURES:
            self._open, self._blocked_until = True, max(self._blocked_until, self._failed_at + COOL_DOWN)
            self._generation += 1

    def cancelled(self, generation: int) -> None:
        """The caller cancelled the request, which is not an outcome of the server."""
        if self._open and generation == self._generation:
            self._blocked_until = self._clock()

    def throttle(self, seconds: float) -> None:
        """The server answered 429 with a Retry-After of `seconds`."""
        self._blocked_until = max(self._blocked_until, self._clock() + min(seconds, MAX_THROTTLE))


@dataclass(slots=True)
class Incident:
    """One cause of failures; times are in seconds of the clock of its `Incidents`."""

    cause: Cause
    began: float
    latest: float
    failures: int = 1


class Incidents:
    """Logs one line when a cause begins and one when it ends. Bounded by the number of causes.

    The lines hold CoE's own words only: a server's text may quote a request or a key.
    """

    def __init__(self, expert: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._expert = expert
        self._clock = clock
        self._active: dict[Cause, Incident] = {}
        self._answered = float("-inf")

    @property
    def active(self) -> Mapping[Cause, Incident]:
        return self._active

    @property
    def failing(self) -> bool:
        """True if an incident has enough failures for an alarm."""
        return any(incident.failures >= MIN_FAILURES for incident in self._active.values())

    def failed(self, error: ExpertError, *, address: str) -> None:
        """Records a failure of the expert. Failures that the request itself caused are ignored."""
        if not error.request_sent or not (error.unhealthy or isinstance(error, ExpertBusy)):
            return
        now = self._clock()
        if (incident := self._active.get(error.cause)) is not None:
            incident.failures += 1
            incident.latest = now
            return
        self._active[error.cause] = Incident(error.cause, now, now)
        what, remedy = REMEDIES[error.cause]
        detail = f", {error.detail}" if error.detail else ""
        _log.warning("expert %s fails: %s (%s at %s%s); %s", self._expert, what, error.cause, address, detail, remedy)

    def answered(self) -> None:
        """Records a complete response."""
        if self._active:
            self._answered = self._clock()

    def close_resolved(self) -> None:
        """Ends the incidents that are over. Call it about once a second."""
        now = self._clock()
        for incident in tuple(self._active.values()):
            if self._answered > incident.latest and now - incident.latest >= QUIET_PERIOD:
                del self._active[incident.cause]
                message = "expert %s answers again: %s ended after %d failures in %.0f s"
                _log.info(message, self._expert, incident.cause, incident.failures, now - incident.began)


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
        self._chunks: Chunks | None = None
        self._closed = False
        self._ended: Callable[[BaseException | None, bool], None] | None = ended

    def chunks(self) -> Self:
        self._chunks = self._reply.chunks()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            assert self._chunks is not None
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            self._end(None, True)
            raise
        except ExpertError as error:
            self._end(error, False)
            raise

    async def aclose(self) -> None:
        """Closes its chunks too, and once: the connection may then belong to another request."""
        self._end(None, False)
        if not self._closed:
            self._closed = True
            if self._chunks is not None:
                await self._chunks.aclose()
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
        tried = tuple([replica for replica in self.replicas if replica.address in call.exclude]) if call.exclude else ()
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
        return float(bool(ready) and 0 not in [replica.queue_length or 0 for replica in ready])

    def _best(self, ready: Sequence[Replica], conversation: bytes) -> Replica:
        if len(ready) == 1:
            return ready[0]
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
