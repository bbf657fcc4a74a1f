"""Explains one device to operators: which experts are awake, which are loading, which requests wait, and the next
decision with its reason. Pure functions.

`preview` calls the policy itself on the moment when it decides next, so that an explanation cannot differ from what is
done: now, at its next check, or when the load that is under way should end. Requests that arrive or end in between
change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coe.fleet.residency.policy import plan
from coe.fleet.residency.state import Action, Candidate, DeviceState, Schedule, ServerState, Tier


@dataclass(frozen=True, slots=True)
class Loading:
    """A load under way: its server, the tier it began from, when it began, and the seconds it should take."""

    key: str
    tier: Tier
    since: float
    expected: float


@dataclass(frozen=True, slots=True)
class Preview:
    """Actions of the policy at the time `at`, if nothing happens before.

    `at` is None if there are none until a request arrives or ends.
    `now` is the schedule of this moment, whose candidates explain who waits.
    """

    now: Schedule
    at: float | None
    actions: tuple[Action, ...]


def preview(state: DeviceState, loading: Sequence[Loading]) -> Preview:
    """Returns the next actions other than admissions."""
    now = plan(state, explain=True)
    if actions := _moves(now):
        return Preview(now, state.now, actions)
    loaded = {one.key: max(one.since + one.expected, state.now) for one in loading}
    times = [*loaded.values(), *([] if now.next_check is None else [max(now.next_check, state.now)])]
    for at in sorted(times):
        then = replace(state, now=at, servers=tuple(_later(server, loaded, at) for server in state.servers))
        if actions := _moves(plan(then)):
            return Preview(now, at, actions)
    return Preview(now, None, ())


def _moves(schedule: Schedule) -> tuple[Action, ...]:
    return tuple(action for action in schedule.actions if action.verb != "admit")


def _later(server: ServerState, loaded: Mapping[str, float], at: float) -> ServerState:
    """The server at a later time: awake if its load has ended by then."""
    if loaded.get(server.key, math.inf) > at:
        return server
    return replace(server, tier="awake", waiting=(), in_flight=server.in_flight + len(server.waiting))


def device_report(
    state: DeviceState,
    loading: Sequence[Loading],
    *,
    experts: Mapping[str, Sequence[str]],
    switches: Mapping[str, int],
) -> dict[str, Any]:
    """One device as JSON, in GB and seconds. `experts` are the names behind each server, `switches` its loads."""
    found = preview(state, loading)
    weighed = {one.key: one for one in found.now.candidates}
    by_key = {one.key: one for one in loading}
    reasons = {s.key: _reason(s, state, weighed.get(s.key), by_key) for s in state.servers}
    return {
        "memory_gb": state.memory,
        "occupied_gb": round(state.memory - state.free, 3),
        "host_memory_gb": state.host_memory,
        "host_occupied_gb": round(state.host_memory - state.host_free, 3),
        "next": {
            "in_s": None if found.at is None else round(found.at - state.now, 3),
            "actions": [{"verb": one.verb, "experts": list(experts[one.key])} for one in found.actions],
            "sentence": _sentence(found, state, experts, reasons),
        },
        "servers": [
            {"experts": list(experts[s.key]), "switches": switches[s.key]}
            | _server(s, state.now, by_key.get(s.key), reasons[s.key])
            for s in state.servers
        ],
    }


def _server(server: ServerState, now: float, loading: Loading | None, reason: str) -> dict[str, Any]:
    return {
        "tier": server.tier,
        "memory_gb": server.profile.memory,
        "pinned": server.profile.pinned,
        "in_flight": server.in_flight,
        "waiting": len(server.waiting),
        "oldest_wait_s": round(max(now - server.waiting[0], 0.0), 3) if server.waiting else None,
        "requests_per_s": round(server.rate, 6),
        "load_s": round(server.load_seconds, 3),
        "loading": None
        if loading is None
        else {
            "from": loading.tier,
            "elapsed_s": round(max(now - loading.since, 0.0), 3),
            "expected_s": round(loading.expected, 3),
        },
        "reason": reason,
    }


def _sentence(
    found: Preview, state: DeviceState, experts: Mapping[str, Sequence[str]], reasons: Mapping[str, str]
) -> str:
    """Return the next actions and their reasons as a sentence."""
    if not found.actions or found.at is None:
        waiting = [s.key for s in state.servers if s.waiting and s.tier not in ("awake", "loading")]
        return "; ".join(_named(experts[key], reasons[key]) for key in waiting) or "nothing until a request needs it"
    steps = ", ".join(_named(experts[one.key], one.verb, first=False) for one in found.actions)
    seconds = found.at - state.now
    when = "now" if seconds < _SOON else f"in {seconds:.1f} s"
    causes = [_named(experts[one.key], reasons[one.key]) for one in found.now.candidates if reasons[one.key]]
    return f"{when}: {steps}" + (f" ({'; '.join(causes[:_MAX_CAUSES])})" if causes else "")


_SOON = 0.05
_MAX_CAUSES = 3
"""Candidates that a sentence names, the most urgent first."""


def _named(names: Sequence[str], text: str, *, first: bool = True) -> str:
    name = "+".join(names)
    return f"{name} {text}" if first else f"{text} {name}"


def _reason(
    server: ServerState,
    state: DeviceState,
    weighed: Candidate | None,
    loading: Mapping[str, Loading],
) -> str:
    """Return the reason why requests for the server wait; empty where none does."""
    if (load := loading.get(server.key)) is not None:
        elapsed, late = state.now - load.since, " already" if state.now > load.since + load.expected else ""
        return f"has been loading for {elapsed:.1f} s{late}; {load.expected:.1f} s are expected"
    if server.tier == "draining":
        return f"finishes its requests in flight ({server.in_flight}) and leaves for others"
    if server.tier == "awake" or not (server.waiting or server.redirected):
        return ""
    if server.tier == "unloading":
        return "is leaving; its requests wait until it can be loaded again"
    if weighed is None:
        return "waits for its turn behind more urgent experts"
    return _weighed_reason(server, state, weighed, loading)


def _weighed_reason(server: ServerState, state: DeviceState, weighed: Candidate, loading: Mapping[str, Loading]) -> str:
    if weighed.obstacle == "failed":
        return f"failed and may start again in {weighed.due - state.now:.1f} s"
    if weighed.obstacle == "too_large":
        return f"needs {server.profile.memory:g} GB, more than pinned experts leave on its device; its requests expire"
    if weighed.obstacle == "no_room":
        return "waits until those before it are loaded, or experts that may not leave free memory"
    paid = f"{weighed.waited:.1f} s of waits against a price of {weighed.price:.1f} s"
    if weighed.due > state.now:
        return f"gathers requests, {paid}; due in {weighed.due - state.now:.1f} s at the earliest"
    if loading:
        return f"is due ({paid}) after the load under way"
    busy = sum(s.in_flight for s in state.servers if s.tier == "draining")
    return f"is due ({paid})" + (f" once the requests in flight ({busy}) of leaving experts have ended" if busy else "")
