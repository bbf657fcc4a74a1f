"""The scheduler of one device: keeps the states of its servers, and turns the policy's plan into orders.

It carries out nothing itself: `Residency` reports events to it and carries out its orders. It has no clock; callers
pass the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from coe.fleet.residency.policy import plan
from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerProfile, ServerState, Ticket


class Scheduler:
    """Call `decide` after every event. Orders to load, sleep and stop are under way until `server_loaded`,
    `server_unloaded` or `server_failed` reports the outcome."""

    def __init__(
        self,
        servers: Iterable[ServerProfile],
        *,
        memory: float,
        host_memory: float,
        max_wait: float,
        policy: Callable[[DeviceState], Schedule] = plan,
    ) -> None:
        self.servers = {profile.key: ServerState(profile) for profile in servers}
        self._budget = (memory, host_memory, max_wait)
        self._policy = policy
        self._server_of: dict[Ticket, ServerState] = {}

    def request_arrived(self, ticket: Ticket, key: str, now: float) -> None:
        """A request for a server arrived; it waits until it is admitted."""
        server = self._server_of[ticket] = self.servers[key]
        server.waiting[ticket] = now

    def request_redirected(self, key: str, now: float) -> None:
        """A request arrived for a server that is not awake; its stand-in answers it."""
        server = self.servers[key]
        server.redirected = now if server.redirected is None else server.redirected

    def request_ended(self, ticket: Ticket) -> None:
        """A request ended, or no longer waits. Unknown tickets are ignored."""
        if (server := self._server_of.pop(ticket, None)) is not None:
            server.waiting.pop(ticket, None)
            server.in_flight.discard(ticket)

    def server_loaded(self, key: str, now: float) -> None:
        """A server is awake."""
        server = self.servers[key]
        if server.loading_since is not None:
            server.load_seconds = now - server.loading_since
        server.tier, server.from_sleep, server.loading_since, server.redirected = "awake", False, None, None
        server.last_used, server.fresh = now, True

    def server_unloaded(self, key: str, tier: Literal["asleep", "stopped"]) -> None:
        self.servers[key].tier = tier

    def server_failing(self, key: str) -> None:
        """A server is down and is being ended; `server_failed` follows."""
        self.servers[key].from_sleep, self.servers[key].tier = False, "unloading"

    def server_failed(self, key: str, *, retry_at: float, refuse: bool) -> list[Ticket]:
        """A server is down and must not be loaded before `retry_at`. With `refuse`, drops and returns its waiting
        requests; else they keep waiting."""
        server = self.servers[key]
        server.tier, server.loading_since, server.redirected, server.retry_at = "stopped", None, None, retry_at
        refused = list(server.waiting) if refuse else []
        for ticket in refused:
            self.request_ended(ticket)
        return refused

    def decide(self, now: float) -> tuple[list[Action], list[Ticket], float | None]:
        """Returns the orders to carry out (load, sleep, stop), the admitted tickets, and when to decide again."""
        schedule = self._policy(self.state(now))
        admitted: list[Ticket] = []
        for action in schedule.actions:
            server = self.servers[action.key]
            if action.verb == "admit":
                admitted += server.waiting
                server.in_flight |= server.waiting.keys()
                server.waiting.clear()
                server.last_used, server.fresh = now, False
                continue
            server.from_sleep = server.tier == "asleep"
            server.tier = "loading" if action.verb == "load" else "unloading"
            if action.verb == "load":
                server.loading_since = now
                server.switches += 1
        return [action for action in schedule.actions if action.verb != "admit"], admitted, schedule.next_check

    def state(self, now: float) -> DeviceState:
        """The device at this moment, for the policy; its servers are those of the scheduler."""
        memory, host_memory, max_wait = self._budget
        return DeviceState(now, memory, host_memory, max_wait, list(self.servers.values()))
