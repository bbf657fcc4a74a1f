"""The scheduler of one device: tracks requests and tiers, and turns the policy's plan into orders.

It carries out nothing itself: `Residency` reports events to it and carries out its orders. It has no clock; callers
pass the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.policy import freed_memory, is_busy, plan
from coe.fleet.residency.report import Loading
from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerProfile, ServerState, Tier

RATES_AGE = 1.0
"""Seconds after which all rates are computed again. Until then each request counts in full for its expert, so that a
burst is seen at once."""
RATE_PRECISION = 0.02
"""Change of a rate, relative to it, that is too small to replace a kept snapshot."""

Ticket = int
"""Identifies one request from its arrival to its end."""
_MAX_ROUNDS = 2
"""Plans made for one event: the second admits requests to the servers that the first resumed."""
LATEST_LOAD_WEIGHT = 0.5
"""Weight of the latest load time in the moving average."""
MAX_LOAD_CHANGE = 4.0
"""Factor by which one load time may differ from what was expected, in the moving average. A load during which the
machine was suspended does not count in full."""


@dataclass(slots=True)
class ServerRecord:
    """The bookkeeping of one server. `load_times` are expected seconds to awake, by tier."""

    profile: ServerProfile
    load_times: dict[Tier, float]
    tier: Tier = "stopped"
    waiting: dict[Ticket, float] = field(default_factory=dict)
    redirected: int = 0
    in_flight: set[Ticket] = field(default_factory=set)
    last_used: float = 0.0
    retry_at: float = -math.inf
    loading_since: tuple[Tier, float] | None = None
    from_sleep: bool = False
    switches: int = 0
    requests: int = 0
    """Requests since the rates were computed."""
    state: ServerState | None = None
    """As of an earlier decision; None after a change."""
    expires: float = -math.inf
    """Time from which its rate is too old."""

    @property
    def load_seconds(self) -> float:
        rest: Tier = "asleep" if self.profile.sleeps else "stopped"
        return self.load_times[self.tier if self.tier in self.load_times else rest]


class Scheduler:
    """Call `decide` after every event. Orders to load, sleep and stop are under way until `server_loaded`,
    `server_unloaded` or `server_failed` reports the outcome."""

    def __init__(
        self,
        servers: Iterable[tuple[ServerProfile, float, float]],
        *,
        memory: float,
        host_memory: float,
        max_wait: float,
        forecast: Forecast,
        policy: Callable[[DeviceState], Schedule] = plan,
    ) -> None:
        """`servers` come with their expected seconds to awake, from asleep and from stopped."""
        self._servers = {
            one.key: ServerRecord(one, {"asleep": asleep, "stopped": stopped}) for one, asleep, stopped in servers
        }
        self._budget = (memory, host_memory, max_wait)
        self._forecast = forecast
        self._policy = policy
        self._server_of: dict[Ticket, str] = {}
        self._rates: Mapping[str, float] = {}
        self._rates_at, self._period = -math.inf, math.inf
        self._latest_arrival = -math.inf
        self._stops: list[str] = []
        self.switches = 0
        """Number of loads of a server."""

    # ------------------------------------------------------------------------------------------------ events

    def request_arrived(self, ticket: Ticket, key: str, now: float, *, category: str = "") -> None:
        """A request for a server arrived; it waits until it is admitted."""
        server = self._changed(key)
        server.requests += 1
        server.waiting[ticket] = server.last_used = now
        self._server_of[ticket] = key
        self._latest_arrival = max(self._latest_arrival, now)
        self._forecast.record(key, category, now)

    def request_redirected(self, key: str, now: float, *, category: str = "") -> None:
        """A request arrived for a server that is not awake; its stand-in answers it."""
        server = self._changed(key)
        server.requests += 1
        server.redirected += 1
        server.last_used = now
        self._forecast.record(key, category, now)

    def request_ended(self, ticket: Ticket, now: float) -> None:
        """A request ended, or no longer waits. Unknown tickets are ignored."""
        key = self._server_of.pop(ticket, None)
        if key is not None:
            server = self._changed(key)
            server.waiting.pop(ticket, None)
            server.in_flight.discard(ticket)
            server.last_used = now

    def server_loaded(self, key: str, now: float) -> None:
        """A server is awake."""
        server = self._changed(key)
        if server.loading_since is not None:
            tier, began = server.loading_since
            server.load_times[tier] = _learned(server.load_times[tier], now - began)
        server.tier, server.loading_since, server.redirected, server.retry_at = "awake", None, 0, -math.inf

    def server_unloaded(self, key: str, tier: Tier) -> None:
        """A server is `asleep` or `stopped` now."""
        self._changed(key).tier = tier

    def server_failing(self, key: str) -> None:
        """A server is down and is being ended; `server_failed` follows."""
        server = self._changed(key)
        server.from_sleep, server.tier = False, "unloading"

    def server_failed(self, key: str, *, retry_at: float, refuse: bool) -> list[Ticket]:
        """A server is down and must not be loaded before `retry_at`. With `refuse`, drops and returns its waiting
        requests; else they keep waiting."""
        server = self._changed(key)
        server.tier, server.loading_since, server.redirected, server.retry_at = "stopped", None, 0, retry_at
        refused = list(server.waiting) if refuse else []
        for ticket in refused:
            del self._server_of[ticket], server.waiting[ticket]
        return refused

    def _changed(self, key: str) -> ServerRecord:
        """The record of a server that is about to change."""
        server = self._servers[key]
        server.state = None
        return server

    # ------------------------------------------------------------------------------------------------ moves

    @property
    def keys(self) -> tuple[str, ...]:
        """The servers on this device."""
        return tuple(self._servers)

    def is_movable(self, key: str, now: float) -> bool:
        """True if requests wait for a server that is stopped and may start."""
        server = self._servers[key]
        return server.tier == "stopped" and bool(server.waiting or server.redirected) and server.retry_at <= now

    def is_waiting_asleep(self, key: str) -> bool:
        """True if requests wait for a server that sleeps."""
        server = self._servers[key]
        return server.tier == "asleep" and bool(server.waiting)

    def oldest_late(self, key: str, now: float) -> float | None:
        """The arrival of the oldest request for a sleeping server, if it has waited as long as a start takes."""
        server = self._servers[key]
        if server.tier != "asleep" or not server.waiting:
            return None
        oldest = next(iter(server.waiting.values()))
        return oldest if now - oldest >= server.load_times["stopped"] else None

    def idle_memory(self, now: float) -> float:
        """GB that are free or held by idle servers, if no request waits and nothing loads here; else none."""
        if any(one.tier == "loading" or one.waiting or one.redirected for one in self._servers.values()):
            return 0.0
        state = self.state(now)
        idle = (one for one in state.servers if one.tier == "awake" and not (is_busy(one) or one.profile.pinned))
        return state.free + sum(map(freed_memory, idle))

    def stop_asleep(self, key: str) -> None:
        """Has the next decision stop a sleeping server, so that it may move."""
        self._stops.append(key)

    def remove(self, key: str) -> ServerRecord:
        """A stopped server leaves for another device, with its waiting requests."""
        server = self._servers.pop(key)
        for ticket in server.waiting:
            del self._server_of[ticket]
        return server

    def add(self, server: ServerRecord) -> None:
        """A stopped server comes from another device. Its rate is computed with the next decision."""
        key = server.profile.key
        self._servers[key] = server
        self._server_of |= dict.fromkeys(server.waiting, key)
        self._latest_arrival = max([self._latest_arrival, *server.waiting.values()])
        self._rates_at = -math.inf

    # ------------------------------------------------------------------------------------------------ decisions

    def decide(self, now: float) -> tuple[list[Action], list[Ticket], float | None]:
        """Returns the orders to carry out (load, sleep, stop), the admitted tickets, and when to decide again."""
        orders: list[Action] = []
        admitted: list[Ticket] = []
        for key in self._stops:
            if self._servers[key].tier == "asleep":
                self._apply(Action("stop", key), now, orders, admitted)
        self._stops.clear()
        for _ in range(_MAX_ROUNDS):
            schedule = self._policy(self.state(now))
            for action in schedule.actions:
                self._apply(action, now, orders, admitted)
            if not any(action.verb == "resume" for action in schedule.actions):
                break
        return orders, admitted, schedule.next_check

    def _apply(self, action: Action, now: float, orders: list[Action], admitted: list[Ticket]) -> None:
        server = self._changed(action.key)
        if action.verb == "admit":
            tickets = list(server.waiting)[: action.count]
            for ticket in tickets:
                del server.waiting[ticket]
                server.in_flight.add(ticket)
            admitted += tickets
        elif action.verb in ("drain", "resume"):
            server.tier = "draining" if action.verb == "drain" else "awake"
        elif action.verb == "load":
            server.from_sleep = server.tier == "asleep"
            server.loading_since, server.tier = (server.tier, now), "loading"
            self.switches += 1
            server.switches += 1
            orders.append(action)
        else:
            server.from_sleep, server.tier = server.tier == "asleep", "unloading"
            orders.append(action)

    # ------------------------------------------------------------------------------------------------ state

    def tier(self, key: str) -> Tier:
        return self._servers[key].tier

    def load_seconds(self, key: str) -> float:
        """Expected seconds until a server is awake: from its current tier, or from the one that it rests in."""
        return self._servers[key].load_seconds

    def status(self, key: str) -> dict[str, Any]:
        """The tier, waiting requests and switches of one server, for operators."""
        server = self._servers[key]
        return {"tier": server.tier, "waiting": len(server.waiting), "switches": server.switches}

    def loading(self) -> list[Loading]:
        """The loads under way."""
        found = [(key, server.loading_since, server.load_times) for key, server in self._servers.items()]
        return [Loading(key, *begun, times[begun[0]]) for key, begun, times in found if begun is not None]

    def load_times(self, key: str) -> dict[Tier, float]:
        """Expected seconds to awake, by tier."""
        return dict(self._servers[key].load_times)

    def state(self, now: float) -> DeviceState:
        """A frozen snapshot for the policy. Its rates are at most 2 x RATES_AGE old, but for new requests."""
        memory, host_memory, max_wait = self._budget
        if now < self._rates_at:  # the clock was set back
            for server in self._servers.values():
                server.state = None
        if not self._rates_at <= now < self._rates_at + RATES_AGE:
            self._rates, self._rates_at = self._forecast.rates(now), now
            self._period = self._forecast.period(now)
            for server in self._servers.values():
                server.requests = 0
        if now < self._latest_arrival:  # the clock was set back
            servers = [self.server_state(key, now) for key in self._servers]
        else:
            servers = [
                server.state if now < server.expires and server.state else self._keep_state(server, now, number)
                for number, server in enumerate(self._servers.values())
            ]
        return DeviceState(now, memory, host_memory, max_wait, tuple(servers))

    def _keep_state(self, server: ServerRecord, now: float, number: int) -> ServerState:
        """Kept for half of RATES_AGE to all of it, by number, so that no single decision renews all of them."""
        server.expires = now + RATES_AGE * (0.5 + 0.5 * number / len(self._servers))
        rate = self._rate(server)
        state = server.state
        if state is None or abs(rate - state.rate) > RATE_PRECISION * rate:
            state = server.state = self._snapshot(server, now, rate)
        return state

    def _rate(self, server: ServerRecord) -> float:
        return self._rates.get(server.profile.key, 0.0) + server.requests / self._period

    def server_state(self, key: str, now: float) -> ServerState:
        """A frozen snapshot of one server, with the forecast of the last decision."""
        server = self._servers[key]
        return self._snapshot(server, now, self._rate(server))

    def _snapshot(self, server: ServerRecord, now: float, rate: float) -> ServerState:
        waiting = tuple(server.waiting.values())
        if now < self._latest_arrival:  # without this they would wait until the clock catches up
            waiting = tuple(min(arrived, now) for arrived in waiting)
        return ServerState(
            server.profile,
            server.tier,
            waiting=waiting,
            redirected=server.redirected,
            in_flight=len(server.in_flight),
            rate=rate,
            last_used=server.last_used,
            load_seconds=server.load_seconds,
            retry_at=server.retry_at,
            from_sleep=server.from_sleep,
        )


def _learned(expected: float, seconds: float) -> float:
    """The expected load time after one load took `seconds`."""
    seconds = min(max(seconds, expected / MAX_LOAD_CHANGE), expected * MAX_LOAD_CHANGE)
    return expected + LATEST_LOAD_WEIGHT * (seconds - expected)
