"""The books of one device: who waits, who is at work, in which tier each resident is. It orders nothing to be done
itself: whoever carries a plan out tells it what has happened. No clock of its own: times are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.policy import plan
from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerProfile, ServerState, Tier

Ticket = int
"""Names one request from its arrival to its end."""
_ROUNDS = 4
REMEMBERED = 0.5
"""Weight of the latest load time against the earlier ones."""


@dataclass(slots=True)
class _Line:
    """What the ledger keeps of one resident. `loads` are seconds to awake from asleep and from stopped."""

    resident: ServerProfile
    loads: dict[Tier, float]
    tier: Tier = "stopped"
    waiting: dict[Ticket, float] = field(default_factory=dict)
    options: int = 0
    at_work: set[Ticket] = field(default_factory=set)
    last_used: float = 0.0
    rests_until: float = 0.0
    woken: tuple[Tier, float] | None = None
    from_sleep: bool = False
    switches: int = 0


class Scheduler:
    """`decide` after every event; it books its own orders, and gives them back to be carried out.

    Orders to wake, sleep and stop are under way until `woken`, `left` or `failed` says how they ended.
    """

    def __init__(
        self,
        residents: Iterable[tuple[ServerProfile, float, float]],
        *,
        memory: float,
        host_memory: float,
        max_wait: float,
        forecast: Forecast,
        policy: Callable[[DeviceState], Schedule] = plan,
    ) -> None:
        """Residents come with their expected seconds to awake: from asleep and from stopped."""
        self._lines = {
            one.key: _Line(one, {"asleep": asleep, "stopped": stopped}) for one, asleep, stopped in residents
        }
        self._budget = (memory, host_memory, max_wait)
        self._forecast = forecast
        self._policy = policy
        self._owner: dict[Ticket, str] = {}
        self.switches = 0
        """Times that a resident was woken."""

    # ------------------------------------------------------------------------------------------------ what happens

    def arrived(self, ticket: Ticket, key: str, now: float, *, category: str = "") -> None:
        """A request for a resident came and is held until admitted."""
        line = self._lines[key]
        line.waiting[ticket] = line.last_used = now
        self._owner[ticket] = key
        self._forecast.note(key, category, now)

    def wished(self, key: str, now: float, *, category: str = "") -> None:
        """A request for a resident that is not awake came and a sibling answers it."""
        line = self._lines[key]
        line.options += 1
        line.last_used = now
        self._forecast.note(key, category, now)

    def ended(self, ticket: Ticket, now: float) -> None:
        """A request is over, or does not wait any longer. Unknown tickets are none of ours."""
        key = self._owner.pop(ticket, None)
        if key is not None:
            line = self._lines[key]
            line.waiting.pop(ticket, None)
            line.at_work.discard(ticket)
            line.last_used = now

    def woken(self, key: str, now: float) -> None:
        """A resident is awake."""
        line = self._lines[key]
        if line.woken is not None:
            tier, began = line.woken
            line.loads[tier] += REMEMBERED * (now - began - line.loads[tier])
        line.tier, line.woken, line.options, line.rests_until = "awake", None, 0, 0.0

    def left(self, key: str, tier: Tier) -> None:
        """A resident is `asleep` or `stopped` now."""
        self._lines[key].tier = tier

    def falls(self, key: str) -> None:
        """A resident is down and what is left of it is being ended; `failed` follows."""
        line = self._lines[key]
        line.from_sleep, line.tier = False, "leaving"

    def failed(self, key: str, *, rests_until: float, refuse: bool) -> list[Ticket]:
        """A resident is down, and must not be woken before a time. Gives back who waited for it where they are to be
        refused; else they wait on."""
        line = self._lines[key]
        line.tier, line.woken, line.options, line.rests_until = "stopped", None, 0, rests_until
        refused = list(line.waiting) if refuse else []
        for ticket in refused:
            del self._owner[ticket], line.waiting[ticket]
        return refused

    # ------------------------------------------------------------------------------------------------ what to do

    def decide(self, now: float) -> tuple[list[Action], list[Ticket], float | None]:
        """Orders to carry out (wake, sleep, stop), tickets that may go ahead, and when to look again."""
        orders: list[Action] = []
        admitted: list[Ticket] = []
        for _ in range(_ROUNDS):  # what was ordered first may free what comes next
            decided = self._policy(self.state(now))
            for action in decided.actions:
                self._book(action, now, orders, admitted)
            if not decided.actions:
                break
        return orders, admitted, decided.again_at

    def _book(self, action: Action, now: float, orders: list[Action], admitted: list[Ticket]) -> None:
        line = self._lines[action.key]
        if action.verb == "admit":
            admitted += self._admit(line, action.count)
        elif action.verb in ("close", "open"):
            line.tier = "closing" if action.verb == "close" else "awake"
        else:
            self._order(line, action, now)
            orders.append(action)

    def _admit(self, line: _Line, count: int) -> list[Ticket]:
        tickets = list(line.waiting)[:count]
        for ticket in tickets:
            del line.waiting[ticket]
            line.at_work.add(ticket)
        return tickets

    def _order(self, line: _Line, action: Action, now: float) -> None:
        if action.verb == "wake":
            line.woken, line.tier = (line.tier, now), "waking"
            self.switches += 1
            line.switches += 1
        else:
            line.from_sleep, line.tier = line.tier == "asleep", "leaving"

    # ------------------------------------------------------------------------------------------------ what stands

    def tier(self, key: str) -> Tier:
        return self._lines[key].tier

    def wake_time(self, key: str) -> float:
        """Seconds that a resident needs to be awake from where it rests."""
        line = self._lines[key]
        return line.loads.get(line.tier, line.loads["asleep" if line.resident.sleeps else "stopped"])

    def told(self, key: str) -> dict[str, Any]:
        """What operators want to know of a resident."""
        line = self._lines[key]
        return {"tier": line.tier, "held": len(line.waiting), "switches": line.switches}

    def state(self, now: float) -> DeviceState:
        """All of it, frozen."""
        memory, host_memory, max_wait = self._budget
        rates = self._forecast.rates(now)
        seats = tuple(self._seat(line, rates.get(key, 0.0)) for key, line in self._lines.items())
        return DeviceState(now, memory, host_memory, max_wait, seats)

    def _seat(self, line: _Line, rate: float) -> ServerState:
        return ServerState(
            line.resident,
            line.tier,
            waiting=tuple(line.waiting.values()),
            wished=line.options,
            in_flight=len(line.at_work),
            rate=rate,
            last_used=line.last_used,
            wake=line.loads.get(line.tier, 0.0),
            rests_until=line.rests_until,
            from_sleep=line.from_sleep,
        )
