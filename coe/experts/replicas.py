"""One expert over one or more replicas: selects a replica for each call and records the outcome.

`Replica` is one server with its breaker. `ReplicatedExpert` selects among the ready ones: by conversation (rendezvous
hashing, for the prefix cache) with bounded load, else by least work. `Breaker` is closed, open after failures, and
half-open for the request that tries the server again; it follows the outcomes of real requests. The failures of one
caller open a breaker of its own: no caller takes an expert away from others. `Incidents` logs each cause of failures of
an expert once, from the first failure until it answers without it.
"""

from __future__ import annotations

import logging
import random
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

Clock = Callable[[], float]
"""Returns seconds, and never goes back."""
State = Literal["closed", "rate_limited", "open", "half_open"]

WINDOW_SIZE = 10
"""Outcomes among which failures are counted. They are not timed, so that the rate means the same at any traffic."""
MAX_FAILURES = 5
"""Failures in the window that open the breaker. Small, because each costs a caller an attempt, and above one, because
healthy servers occasionally refuse or reset a connection."""
MIN_FAILURES_OF_OTHERS = 2
"""How many of these must be of other callers than the one with most, so that the failures are not of its making."""
MAX_CALLERS = 256
"""Callers of a server whose failures are remembered. Each takes less than 1 kB."""
COOL_DOWN = 5.0
"""Longest time in seconds until a trial. It is drawn evenly from 0 to this, so that gateways try at different times."""
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

    Not thread-safe: it belongs to one event loop.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.is_open = False
        self.generation = 0
        self._clock = clock
        self.blocked_until = self._failed_at = _NEVER
        self._window: deque[str | None] = deque(maxlen=WINDOW_SIZE)  # the caller of a failure; None: a success

    @property
    def state(self) -> State:
        """`half_open` while a trial may begin; `rate_limited` while throttled by a 429."""
        if self.ready(self._clock()):
            return "half_open" if self.is_open else "closed"
        return "open" if self.is_open else "rate_limited"

    def ready(self, now: float) -> bool:
        """True if a request may begin now."""
        return now >= self.blocked_until

    def failed_recently(self, now: float) -> bool:
        """True if the server failed within the last second and has not succeeded since. Others are preferred then."""
        return now - self._failed_at < 1.0

    def begin(self) -> int:
        """Starts a request. Returns the generation for its outcome. A trial blocks others for one cool-down, not until
        it ends: a response that is not streamed may take a healthy server minutes."""
        if self.is_open and self.ready(now := self._clock()):
            self.blocked_until = now + COOL_DOWN
        return self.generation

    def answered(self, generation: int) -> None:
        """The first chunk arrived. For a trial this closes the breaker."""
        if self.is_open and generation == self.generation:
            self.is_open, self.blocked_until = False, _NEVER
            self._window.clear()

    def succeeded(self, generation: int) -> None:
        """The response was complete, or the server rightly rejected the request."""
        if generation == self.generation:
            self.answered(generation)
            self._window.append(None)
            self._failed_at = _NEVER

    def failed(self, generation: int, caller: str = "") -> None:
        """The server refused, broke off, timed out or sent an invalid response, to a request of `caller`; empty if that
        does not depend on the caller."""
        if generation != self.generation:
            return
        if not caller:
            self._failed_at = self._clock()
        self._window.append(caller)
        callers = [one for one in self._window if one is not None]
        of_one = max((callers.count(one) for one in {*callers} - {""}), default=0)
        if self.is_open or (len(callers) >= MAX_FAILURES and len(callers) - of_one >= MIN_FAILURES_OF_OTHERS):
            self.open()

    def open(self) -> None:
        """Lets no request begin until the next trial. Failures of an open breaker do not delay that trial."""
        now = self._clock()
        trial = now + random.uniform(0.0, COOL_DOWN)  # noqa: S311
        if not self.is_open:
            self.is_open, self.blocked_until = True, max(self.blocked_until, trial)
            self.generation += 1
        else:
            self.blocked_until = trial if self.ready(now) else min(self.blocked_until, trial)

    def cancelled(self, generation: int) -> None:
        """The caller cancelled the request, which is not an outcome of the server."""
        if self.is_open and generation == self.generation:
            self.blocked_until = self._clock()

    def throttle(self, seconds: float) -> None:
        """The server answered 429 with a Retry-After of `seconds`."""
        self.blocked_until = max(self.blocked_until, self._clock() + min(seconds, MAX_THROTTLE))


Began = dict[Breaker, int]
"""The breakers that a request passed, and the generation of each."""


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

    def __init__(self, expert: str, *, clock: Clock = time.monotonic) -> None:
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
    pages, empty for a provider's own address. `cause` is that of its last failure. `answers` is False from a failed
    health check until it answers again. `expert` answers in all its APIs, regardless of the breakers.

    `breaker` is that of all callers, `by_caller` has those of callers whose requests failed. A caller without a name is
    the only one.
    """

    def __init__(self, expert: Expert, *, endpoint: Endpoint | None = None, clock: Clock = time.monotonic) -> None:
        self.expert = expert
        base = endpoint.base_url if endpoint else ""
        self.address = redact_url(remove_suffix(base, "/v1")).partition("://")[2] or "provider"
        self.root = remove_suffix(base, "/v1")
        self.seed = blake2b((base or self.address).encode(), digest_size=16).digest()
        self.breaker = Breaker(clock=clock)
        self.by_caller: dict[str, Breaker] = {}
        self.in_flight = 0
        self.queue_length: int | None = None
        self.cause: Cause | Literal[""] = ""
        self.answers = True
        self.incidents = Incidents(expert.name, clock=clock)
        self._clock = clock

    def breakers(self, caller: str = "") -> tuple[Breaker, ...]:
        """The breakers that a request of `caller` passes."""
        own = self.by_caller.get(caller)
        return (self.breaker,) if own is None else (self.breaker, own)

    def ready(self, now: float, caller: str = "") -> bool:
        """True if a request may begin now."""
        own = self.by_caller.get(caller)
        return now >= self.breaker.blocked_until and (own is None or now >= own.blocked_until)

    def rests_for(self, caller: str) -> bool:
        """True if failures alone keep requests of `caller` away, and the server answers health checks."""
        return self.answers and all(one.is_open or one.state == "closed" for one in self.breakers(caller))

    @property
    def outstanding(self) -> int:
        """Requests that a new one would share the server with or wait behind."""
        return self.in_flight + (self.queue_length or 0)

    def checked(self, answers: bool) -> None:
        """Records a health check. A server that does not answer rests for all callers."""
        if self.answers and not answers:
            self.breaker.open()
        self.answers = answers

    async def stream(self, call: Call) -> Reply:
        """Sends a call to this server; the breakers record the outcome. Raises what its expert raises."""
        began = {breaker: breaker.begin() for breaker in self.breakers(call.caller)}
        self.in_flight += 1
        try:
            reply = await self.expert.stream(call)
        except BaseException as error:
            self.in_flight -= 1
            self._record_failure(error, began, call.caller)
            raise
        self.answers = True
        _report(Breaker.answered, began)
        return TrackedReply(reply, partial(self._reply_ended, began, call.caller))

    def _reply_ended(self, began: Began, caller: str, error: BaseException | None, complete: bool) -> None:
        """Records the end of a reply: broken off by `error`, `complete`, or abandoned by its reader."""
        self.in_flight -= 1
        if error is not None:
            self._record_failure(error, began, caller)
        elif complete:
            _report(Breaker.succeeded, began)
            self.incidents.answered()
        else:
            _report(Breaker.cancelled, began)

    def _record_failure(self, error: BaseException, began: Began, caller: str) -> None:
        if not isinstance(error, ExpertError) or not error.request_sent or error.cause == "gateway_limit":
            _report(Breaker.cancelled, began)
            return
        self.incidents.failed(error, address=self.address)
        pause = error.retry_after if isinstance(error, ExpertBusy) else None
        if not error.unhealthy:
            _report(Breaker.succeeded, began)
            if pause is None:
                return
        self.cause = error.cause
        own = None
        if caller and not isinstance(error, ExpertUnreachable):  # which depends on no caller
            own = self._breaker_of(caller)
            began.setdefault(own, own.generation)
        for breaker, generation in began.items():
            if pause is None:
                breaker.failed(generation, caller if own and breaker is self.breaker else "")
            elif own in (None, breaker) or any(
                one.state == "rate_limited" for one in self.by_caller.values() if one is not own
            ):
                breaker.throttle(pause)

    def _breaker_of(self, caller: str) -> Breaker:
        """The caller's own breaker. A new one takes the place of the oldest beyond MAX_CALLERS."""
        if caller not in self.by_caller and len(self.by_caller) == MAX_CALLERS:
            del self.by_caller[next(iter(self.by_caller))]
        return self.by_caller.setdefault(caller, Breaker(clock=self._clock))


def _report(outcome: Callable[[Breaker, int], None], began: Began) -> None:
    for breaker, generation in began.items():
        outcome(breaker, generation)


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
_IDLE = Health()
"""The health of an expert whose one server accepts requests and has no queue."""


class ReplicatedExpert:
    """Sends each call to the most suitable replica; the only Expert that the layers above see.

    If a replica cannot be reached, the same call tries another one; servers in `call.exclude` are not tried. If no
    replica is ready, the call fails at once with ExpertBusy (all are throttled) or ExpertUnavailable, and the time of
    the next trial. A call that is `forced` takes a replica whose breaker is open if its server answers health checks.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        endpoints: tuple[Endpoint, ...] = (),
        *,
        replicas: Sequence[Replica],
        clock: Clock = time.monotonic,
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
        if len(self.replicas) == 1 and self._limit is None:  # the usual case, at every request
            sole = self.replicas[0]
            if not sole.queue_length and sole.breaker.ready(self._clock()):
                return _IDLE
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
        while call.first_token_timeout > 0 and (ready := self._ready(call.caller, tried, forced=call.forced)):
            replica = self._best(ready, call)
            began = self._clock()
            try:
                return await replica.stream(call)
            except ExpertUnreachable as error:
                failure, tried = error, (*tried, replica)
                call = replace(call, first_token_timeout=call.first_token_timeout - (self._clock() - began))
        if failure is not None:
            failure.unavailable_servers = frozenset(replica.address for replica in tried if replica.root)
        raise failure or self._none_ready(call)

    def _ready(self, caller: str = "", exclude: Collection[Replica] = (), *, forced: bool = False) -> list[Replica]:
        """The replicas that a request of `caller` may use now; if it is forced, else those that rest."""
        now = self._clock()
        ready = [one for one in self.replicas if one.ready(now, caller) and one not in exclude]
        return ready or [one for one in self.replicas if forced and one.rests_for(caller) and one not in exclude]

    def _load(self, ready: Sequence[Replica]) -> float:
        if self._limit is not None:
            return sum(map(_outstanding, ready)) / (self._limit * len(ready)) if ready else 0.0
        return float(bool(ready) and 0 not in [replica.queue_length or 0 for replica in ready])

    def _best(self, ready: Sequence[Replica], call: Call) -> Replica:
        if len(ready) == 1:
            return ready[0]
        now = self._clock()
        ready = [one for one in ready if not any(b.failed_recently(now) for b in one.breakers(call.caller))] or ready
        if call.conversation:
            return preferred_replica(ready, call.conversation)
        self._rotation = (self._rotation + 1) % len(ready)  # round-robin among equally idle replicas
        return min([*ready[self._rotation :], *ready[: self._rotation]], key=_outstanding)

    def _none_ready(self, call: Call) -> ExpertError:
        now, caller = self._clock(), call.caller
        free_at = min(max(one.blocked_until for one in replica.breakers(caller)) for replica in self.replicas)
        wait = max(free_at - now, 0.0) or COOL_DOWN  # 0: a trial is running
        throttled = not any(one.is_open for replica in self.replicas for one in replica.breakers(caller))
        reason = "is rate limited" if throttled else "has no server that accepts the request"
        message = f"expert {self.name!r} {reason}; next attempt in {wait:.1f} s"
        error = ExpertBusy(message, expert=self.name) if throttled else ExpertUnavailable(message, expert=self.name)
        error.retry_after, error.request_sent = wait, False
        error.cause = self._cause()
        error.may_be_forced = any(replica.rests_for(caller) for replica in self.replicas)
        return error


def preferred_replica(replicas: Sequence[Replica], conversation: bytes) -> Replica:
    """The conversation's own replica, which has its prefix in cache, unless its work exceeds the load bound; then the
    one with the least work. The same in every process: rendezvous hashing (Thaler and Ravishankar 1998)."""
    own = max(replicas, key=lambda replica: blake2b(conversation, key=replica.seed, digest_size=8).digest())
    if own.outstanding <= LOAD_BOUND * sum(map(_outstanding, replicas)) / len(replicas) + 1:
        return own
    return min(replicas, key=_outstanding)
