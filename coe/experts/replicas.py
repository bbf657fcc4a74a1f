"""One expert over one or more replicas: which of them answers, and what their answers say about them.

How long an expert usually takes to begin, from its latest streams, and whether that is worth acting on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from coe.core import Call, Expert, Health, Reply
from coe.errors import Cause, ExpertBusy, ExpertError, ExpertUnavailable, ExpertUnreachable
from coe.experts.breaker import COOL_DOWN, Breaker, State
from coe.experts.incidents import Incidents
from coe.registry import ExpertSpec
from coe.settings import Endpoint
from coe.urls import shown, without

KEPT = 256
ENOUGH = 20
"""Streams before a 95th percentile means anything: with fewer it is the slowest one."""
_FRESH = 16
"""Streams that one percentile stands for; sorting for each would cost every request 10 µs."""
SHARE = 0.1
"""Of an expert's streams that may be given up as slower than usual. By what usual means that is one in twenty: an
expert of which it is more has become slower, and can show it only where it is waited for (gRPC throttles alike)."""
SPARE = 10.0
"""Streams given up in a row that this allows for."""


class FirstTokenTimes:
    """The times, in seconds, to the first pieces of the last 256 streams."""

    __slots__ = ("_next", "_p95", "_seen", "_spare", "_times")

    def __init__(self) -> None:
        self._spare = SPARE
        self._times: list[float] = []
        self._next = 0
        self._p95: float | None = None
        self._seen = 0

    def given_up(self, seconds: float) -> None:
        """A stream had not begun after so long when another came first, or its client left. One that was late by then
        counts as that long: without the slowest the usual time would fall, and more would seem slow each time."""
        if self._p95 is not None and seconds > self._p95:
            self._spare = max(self._spare - 1.0 - SHARE, 0.0)
            self.note(seconds)

    def note(self, seconds: float) -> None:
        """Remember one stream's time."""
        self._spare = min(self._spare + SHARE, SPARE)
        if len(self._times) < KEPT:
            self._times.append(seconds)
        else:
            self._times[self._next] = seconds
            self._next = (self._next + 1) % KEPT
        self._seen += 1
        if self._seen >= ENOUGH and (self._p95 is None or self._seen % _FRESH == 0):
            ordered = sorted(self._times)
            self._p95 = ordered[int(0.95 * (len(ordered) - 1))]

    @property
    def p95(self) -> float | None:
        """Seconds within which 95 % of them came; None before there are 20, and while too many were given up."""
        return self._p95 if self._spare >= 1.0 else None


BOUND = 1.25
"""A conversation's own replica is left when it has more work than so many times the mean, plus one (Mirrokni et al.
2018, consistent hashing with bounded loads, arXiv 1608.01350)."""
_MASK = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15


class Replica:
    """One server of an expert.

    `in_flight` counts our requests there, each to its last byte; `waiting` is the length of the server's own queue,
    None where it shows none (only vLLM does). `alive` is whether its server answered when it was last looked for, as is
    done when it is new or failed; None before. `address` names it without credentials; pages beside its API are under
    `root`, which is empty for a provider's own address. `cause` is that of its last failure, `expert` answers without
    regard to its breaker.
    """

    __slots__ = ("address", "alive", "breaker", "cause", "expert", "in_flight", "incidents", "root", "seed", "waiting")

    def __init__(
        self, expert: Expert, *, endpoint: Endpoint | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.expert = expert
        base = endpoint.base_url if endpoint else ""
        self.address = shown(without(base, "/v1")).partition("://")[2] or "provider"
        self.root = without(base, "/v1")
        self.seed = int.from_bytes(blake2b((base or self.address).encode(), digest_size=8).digest(), "little")
        self.breaker = Breaker(clock=clock)
        self.in_flight = 0
        self.waiting: int | None = None
        self.alive: bool | None = None
        self.cause: Cause | Literal[""] = ""
        self.incidents = Incidents(expert.name, clock=clock)

    @property
    def state(self) -> State:
        return self.breaker.state

    @property
    def work(self) -> int:
        """Requests that a new one would share the server with or wait behind."""
        return self.in_flight + (self.waiting or 0)

    async def stream(self, call: Call) -> Reply:
        """Ask this server; the breaker learns how it went. Raises what its expert raises."""
        breaker = self.breaker
        era = breaker.begin(call.tenant)
        self.in_flight += 1
        try:
            reply = await self.expert.stream(call)
        except BaseException as error:
            self.in_flight -= 1
            self._learn(error, era, call.tenant)
            raise
        breaker.answered(era)
        return _Held(reply, self, era, call.tenant)

    async def aclose(self) -> None:
        await self.expert.aclose()

    def ended(self, era: int, error: BaseException | None, *, whole: bool, caller: str) -> None:
        """A reply is over: broken off by `error`, come `whole`, or left by its reader."""
        self.in_flight -= 1
        if error is not None:
            self._learn(error, era, caller)
        elif whole:
            self.breaker.succeeded(era)
            self.incidents.answered()
        else:
            self.breaker.dropped(era)

    def _learn(self, error: BaseException, era: int, caller: str) -> None:
        if not isinstance(error, ExpertError) or not error.request_sent:
            self.breaker.dropped(era)
            return
        self.incidents.failed(error, address=self.address)
        if error.unhealthy:
            self.cause = error.cause
            self.breaker.failed(era, caller=caller, concerns_all=error.caller_independent)
        else:
            self.breaker.succeeded(era)
        if isinstance(error, ExpertBusy) and error.retry_after is not None:
            self.cause = error.cause
            self.breaker.rest(error.retry_after, caller=caller)


class _Held:
    """A reply that counts as a request in flight until its last byte, once."""

    __slots__ = ("_caller", "_era", "_over", "_replica", "_reply", "media_type", "usage")

    def __init__(self, reply: Reply, replica: Replica, era: int, caller: str) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._replica = replica
        self._era = era
        self._caller = caller
        self._over = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunks = self._reply.chunks()
        try:
            async for chunk in chunks:
                yield chunk
            self._end(whole=True)
        except ExpertError as error:
            self._end(error)
            raise
        finally:
            await chunks.aclose()

    async def aclose(self) -> None:
        self._end()
        await self._reply.aclose()

    def _end(self, error: BaseException | None = None, *, whole: bool = False) -> None:
        if not self._over:
            self._over = True
            self._replica.ended(self._era, error, whole=whole, caller=self._caller)


class ReplicatedExpert:
    """Asks the replica that suits a call best; the only Expert that composition sees.

    A replica that no connection reaches is passed over for another one within the same call, and one at a server that
    could not be had for the same request (call.but) is not tried. Breakers that opened for failures which a single
    request can provoke keep requests from at most half of the replicas: where more than half would be passed over,
    these are asked all the same (Envoy's panic threshold). When none may be asked the answer is an ExpertBusy (all are
    resting) or ExpertUnavailable at once, with the time of the next trial.
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
        self.first_pieces = FirstTokenTimes()
        self._limit = spec.concurrent_requests
        self._clock = clock
        self._standing = Health()
        self._turn = 0

    @property
    def health(self) -> Health:
        """From the replicas that may be asked now. Without a declared concurrent_requests an expert is overloaded when
        each of them has a queue."""
        ready = self._ready(())
        load, p95, seen = self._load(ready), self.first_pieces.p95, self._standing
        cause = "" if ready else self._cause()
        if load != seen.load or len(ready) != seen.ready_replicas or p95 != seen.ttft_p95 or cause != seen.cause:
            self._standing = seen = Health(bool(ready), load, len(ready), p95, cause)
        return seen

    def _cause(self) -> Cause:
        """Why none of the replicas may be asked."""
        return next((replica.cause for replica in self.replicas if replica.cause), "circuit_open")

    async def stream(self, call: Call) -> Reply:
        """Ask the best replica, and return once the first piece is there. Raises an ExpertError, or InvalidRequest."""
        failure: ExpertUnreachable | None = None
        passed = tuple(replica for replica in self.replicas if replica.address in call.exclude)
        if len(passed) == len(self.replicas):
            raise self._known_to_be_away(call)
        while call.first_token_timeout > 0 and (ready := self._ready(passed, call.tenant)):
            replica = ready[0] if len(ready) == 1 else self._best(ready, call.conversation)
            began = self._clock()
            try:
                return await self._first(replica, call)
            except ExpertUnreachable as error:
                failure, passed = error, (*passed, replica)
                call = replace(call, first_token_timeout=call.first_token_timeout - (self._clock() - began))
            except ExpertUnavailable as error:
                if error.queue_full and not self.spec.addresses:  # started here: one queue for all experts on it
                    error.unavailable_servers = call.exclude | {replica.address}
                raise
        if failure is not None:
            failure.unavailable_servers = frozenset(replica.address for replica in passed if replica.root)
        raise failure or self._nobody(call.tenant)

    async def _first(self, replica: Replica, call: Call) -> Reply:
        """Ask one; how long a stream takes to begin is noted. A plain answer's first piece is its last, and tells how
        much was said."""
        if not call.stream:
            return await replica.stream(call)
        began = self._clock()
        try:
            reply = await replica.stream(call)
        except asyncio.CancelledError:
            self.first_pieces.given_up(self._clock() - began)
            raise
        self.first_pieces.note(self._clock() - began)
        return reply

    def _ready(self, exclude: Collection[Replica], caller: str | None = None) -> Sequence[Replica]:
        """Those that may be asked now (for this `caller`)."""
        if not exclude and all(replica.breaker.calm for replica in self.replicas):
            return self.replicas
        now = self._clock()
        ready = [replica for replica in self.replicas if replica.breaker.ready(now, caller)]
        if 2 * len(ready) < len(self.replicas) > 1:
            ready = [replica for replica in self.replicas if replica in ready or _perhaps_well(replica)]
        return [replica for replica in ready if replica not in exclude]

    async def aclose(self) -> None:
        """Close what the replicas opened for themselves."""
        for replica in self.replicas:
            await replica.aclose()

    def _load(self, ready: Sequence[Replica]) -> float:
        if self._limit is not None:
            return sum(map(_work, ready)) / (self._limit * len(ready)) if ready else 0.0
        return 1.0 if ready and all(replica.waiting for replica in ready) else 0.0

    def _best(self, ready: Sequence[Replica], conversation: bytes) -> Replica:
        if ready is not self.replicas:
            now = self._clock()
            ready = [replica for replica in ready if not replica.breaker.shaken(now)] or ready
        if conversation:
            return preferred(ready, conversation)
        self._turn += 1
        turn = self._turn % len(ready)
        ready = [*ready[turn:], *ready[:turn]]  # of the equally idle each in turn
        return min(ready, key=_work)

    def _known_to_be_away(self, call: Call) -> ExpertUnreachable:
        error = ExpertUnreachable(
            f"expert {self.name!r} is at a server that just could not be reached or was full", expert=self.name
        )
        error.unavailable_servers, error.request_sent = call.exclude, False
        return error

    def _nobody(self, caller: str) -> ExpertError:
        now = self._clock()
        wait = min(replica.breaker.wait(now, caller) for replica in self.replicas) or COOL_DOWN  # 0: a trial is on
        resting = all(replica.state in ("resting", "closed") for replica in self.replicas)  # closed: for this caller
        reason = "is busy and asked to be left alone" if resting else "failed too often lately"
        error = (ExpertBusy if resting else ExpertUnavailable)(
            f"expert {self.name!r} {reason}; it is asked again in {wait:.1f} s", expert=self.name
        )
        error.retry_after, error.request_sent = wait, False
        error.cause = self._cause()
        return error


def _perhaps_well(replica: Replica) -> bool:
    """Whether its breaker is open for failures that a single request can provoke, and its health page did not fail."""
    breaker = replica.breaker
    return replica.state in ("open", "half_open") and not breaker.concerns_all and replica.alive is not False


def preferred(replicas: Sequence[Replica], conversation: bytes) -> Replica:
    """The conversation's own replica, which has its prefix in cache, unless that has clearly more work than the others;
    else the one with the least. The same in every process: rendezvous hashing (Thaler and Ravishankar 1998)."""
    key = int.from_bytes(blake2b(conversation, digest_size=8).digest(), "little")
    own, highest = replicas[0], -1
    for replica in replicas:  # multiplication spreads what differs to the high bits, the shift brings it back down
        mixed = (key ^ replica.seed) * _ODD & _MASK
        weight = (mixed ^ mixed >> 32) * _ODD & _MASK
        if weight > highest:
            own, highest = replica, weight
    work = own.work
    if work <= 1 or work <= BOUND * sum(map(_work, replicas)) / len(replicas) + 1:
        return own
    return min(replicas, key=_work)


def _work(replica: Replica) -> int:
    return replica.work
