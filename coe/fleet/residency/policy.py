"""Who gets a device's memory: pure, from a State to a Plan.

Requests for an expert that is awake are admitted at once. Others wait, by expert, and one expert at a time is woken:

1. The expert whose oldest request would soon have waited `max_wait`, the longest overdue first. It gets its memory even
   from busy experts: those take nothing new and leave when their work is done.
2. Else the expert of greatest *use*, if memory is free, or if its use is more than twice that of the idle experts
   which would have to leave.

Use is what an expert has to do within `max_wait`: requests that wait or are under way, and those that the forecast
expects. So a rare expert waits until its requests have gathered or grown old, and does not push out one that is about
to be needed; with `max_wait` small, whoever is asked for comes at once. Experts with least use leave first, of the like
the one not used for longest. Nobody with work in flight is ever put to sleep.

While nobody has to be woken, one that is expected to be of use soon is woken ahead. (That queues are served whole
before a switch is the classical exhaustive discipline of polling systems; expected use in place of recency is after
Jain et al. 2024, arXiv 2412.01868, and CoServe, Suo et al. 2025, arXiv 2503.02354.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerState, held

MARGIN = 2.0
"""An expert that is not due comes in place of others only with more than so many times their use: two that are asked
for alike would change places all the time otherwise."""


def plan(state: DeviceState) -> Schedule:
    """What to do at this moment. Repeat it after carrying it out, and whenever something has changed."""
    actions = [Action("admit", s.key, len(s.waiting)) for s in state.seats if s.tier == "awake" and s.waiting]
    if any(s.tier in ("waking", "leaving") for s in state.seats):
        return Schedule(tuple(actions))  # the device loads one at a time: two would share its bandwidth
    target, leavers = _change(state)
    keys = {seat.key for seat in leavers}
    actions += [Action("open", s.key) for s in state.seats if s.tier == "closing" and s.key not in keys]
    if target is None:
        return Schedule(tuple(actions), _again_at(state))
    if not leavers:
        return Schedule((*actions, Action("wake", target.key)))
    return Schedule((*actions, *_farewells(state, leavers)))


def use(seat: ServerState, state: DeviceState) -> float:
    """Requests that an expert has or will get within `max_wait`."""
    return len(seat.waiting) + seat.wished + seat.in_flight + seat.rate * state.max_wait


def _change(state: DeviceState) -> tuple[ServerState | None, Sequence[ServerState]]:
    """Who is to be woken, if anybody, and who has to leave for that."""
    able = [s for s in state.seats if s.tier in ("asleep", "stopped") and s.rests_until <= state.now]
    asked = [s for s in able if s.waiting]
    due = [s for s in asked if _due(s, state) <= state.now]
    for seat in sorted(due, key=lambda s: _due(s, state)):
        if (leavers := _leavers(seat, state, busy=True)) is not None:
            return seat, leavers
    wanted = [seat for seat in able if seat.waiting or seat.wished]
    ahead = [seat for seat in able if not (seat.waiting or seat.wished) and use(seat, state) >= 1.0]
    for group in (wanted, ahead):
        for seat in sorted(group, key=lambda s: -use(s, state)):
            leavers = _leavers(seat, state, busy=False)
            if leavers is not None and use(seat, state) > MARGIN * sum(use(s, state) for s in leavers):
                return seat, leavers
    return None, ()


def _due(seat: ServerState, state: DeviceState) -> float:
    """When it must begin to wake for its oldest request not to wait longer than `max_wait`."""
    return seat.waiting[0] + state.max_wait - seat.wake


def _leavers(target: ServerState, state: DeviceState, *, busy: bool) -> Sequence[ServerState] | None:
    """Those who must leave to make room, least use first; none where there is room, None where all of them would not
    make enough."""
    room = state.free + held(target)
    chosen: list[ServerState] = []
    for seat in sorted(_movable(target, state, busy=busy), key=lambda s: _order(s, state)):
        if room >= target.resident.memory:
            break
        chosen.append(seat)
        room += _given(seat)
    return chosen if room >= target.resident.memory else None


def _movable(target: ServerState, state: DeviceState, *, busy: bool) -> Iterator[ServerState]:
    for seat in state.seats:
        if seat.tier in ("awake", "closing") and not seat.resident.pinned:
            if busy or not (seat.in_flight or seat.waiting):
                yield seat
        elif seat.tier == "asleep" and seat is not target and seat.resident.asleep_memory:
            yield seat


def _order(seat: ServerState, state: DeviceState) -> tuple[int, float, float]:
    """Who has been told to leave goes on, who is asleep stays where others make enough room; then by use and by how
    long ago it was used."""
    rank = {"closing": 0, "awake": 1}.get(seat.tier, 2)
    return rank, use(seat, state), seat.last_used


def _given(seat: ServerState) -> float:
    """GB that a seat gives back by leaving."""
    stays = seat.resident.asleep_memory if seat.resident.sleeps and seat.tier != "asleep" else 0.0
    return held(seat) - stays


def _farewells(state: DeviceState, leavers: Sequence[ServerState]) -> Iterator[Action]:
    """The idle leave now; the busy are closed first. Without room in the host's RAM one is stopped, and with it the
    least used of those asleep where that is less used, so that there is room the next time."""
    host = state.host_free
    asleep = sorted((s for s in state.seats if s.tier == "asleep" and s not in leavers), key=lambda s: use(s, state))
    for seat in leavers:
        if seat.in_flight or (seat.tier == "awake" and seat.waiting):  # who waits there is admitted by the same plan
            if seat.tier == "awake":
                yield Action("close", seat.key)
        elif seat.tier != "asleep" and seat.resident.sleeps and host >= seat.resident.host_memory:
            host -= seat.resident.host_memory
            yield Action("sleep", seat.key)
        else:
            yield Action("stop", seat.key)
            if seat.resident.sleeps and asleep and use(asleep[0], state) < use(seat, state):
                yield Action("stop", asleep.pop(0).key)


def _again_at(state: DeviceState) -> float | None:
    """When somebody becomes due, or has rested."""
    times = [_due(s, state) for s in state.seats if s.tier in ("asleep", "stopped") and s.waiting]
    times += [s.rests_until for s in state.seats if s.waiting]
    return min((time for time in times if time > state.now), default=None)
