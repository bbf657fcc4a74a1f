"""The explanation of a device: it names what the scheduler does next, and why a request waits."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coe.cli.report import _residency_lines
from coe.fleet.residency.report import Loading, Preview, device_report, preview
from coe.fleet.residency.state import Action, DeviceState, ServerProfile, ServerState
from tests.residency.simulation import LOAD_SECONDS, UNLOAD_SECONDS, scheduler_of

A, B, C = (ServerProfile(key, 10.0) for key in "abc")
NAMES = {"a": ["law"], "b": ["code"], "c": ["chat"]}


def reported(*servers: ServerState, loading: tuple[Loading, ...] = (), now: float = 0.0) -> tuple[str, dict[str, str]]:
    """The next decision and the reasons by expert, on a device with room for one."""
    state = DeviceState(now, 10.0, 0.0, 10.0, servers)
    found = device_report(state, loading, experts=NAMES, switches=dict.fromkeys("abc", 0))
    reasons = {one["experts"][0]: one["reason"] for one in found["servers"]}
    return found["next"]["sentence"], reasons


def test_a_request_that_gathers_others_is_explained_with_its_price() -> None:
    popular = ServerState(A, "awake", rate=0.5, load_seconds=2.0)
    sentence, reasons = reported(popular, ServerState(B, "stopped", waiting=(0.0,), load_seconds=2.0))
    assert reasons == {
        "law": "",
        "code": "gathers requests, 2.0 s of waits against a price of 3.8 s; due in 1.8 s at the earliest",
    }
    assert sentence == f"in 1.8 s: stop law (code {reasons['code']})"


def test_coe_status_shows_a_device_and_its_experts() -> None:
    servers = (ServerState(A, "awake", in_flight=1), ServerState(B, "asleep", waiting=(1.0, 3.0), load_seconds=2.0))
    state = DeviceState(4.0, 10.0, 0.0, 0.0, servers)
    found = device_report(state, (), experts=NAMES, switches={"a": 1, "b": 2, "c": 0})
    for server, may_use in zip(found["servers"], (["gpu0"], ["gpu0", "gpu1"]), strict=True):
        server["devices"] = may_use
    device, law, code = _residency_lines({"device": "gpu0"} | found)
    assert device == ("device gpu0", f"10 of 10 GB in use; next {found['next']['sentence']}")
    assert law == ("expert law", "awake, loaded 1 times, a load takes 1.0 s")
    assert code[1].startswith(
        "asleep, loaded 2 times, a load takes 2.0 s, may use gpu0 or gpu1, 2 waiting, the oldest for 3.0 s: "
    )


def test_a_load_under_way_shows_since_when_and_what_comes_after_it() -> None:
    servers = (ServerState(A, "loading"), ServerState(B, "stopped", waiting=(3.0,)))
    sentence, reasons = reported(*servers, loading=(Loading("a", "stopped", 1.0, 5.0),), now=4.0)
    assert reasons["law"] == "has been loading for 3.0 s; 5.0 s are expected"
    assert sentence.startswith("in 2.0 s: stop law")
    assert "already" in reported(*servers, loading=(Loading("a", "stopped", 1.0, 5.0),), now=7.0)[1]["law"]


def test_an_expert_that_cannot_be_loaded_says_so() -> None:
    larger = ServerState(replace(B, memory=40.0), "stopped", waiting=(0.0,))
    failed = ServerState(C, "stopped", waiting=(0.0,), retry_at=8.0)
    sentence, reasons = reported(ServerState(A, "awake"), larger, failed)
    assert reasons["code"].startswith("needs 40 GB, more than pinned experts leave")
    assert reasons["chat"] == "failed and may start again in 8.0 s"
    assert sentence.startswith("in 8.0 s: stop law")


def test_requests_for_an_expert_that_leaves_have_a_reason() -> None:
    leaves = ServerState(A, "unloading", waiting=(0.0,))
    assert reported(leaves)[1]["law"] == "is leaving; its requests wait until it can be loaded again"
    assert reported(replace(leaves, waiting=()))[1]["law"] == ""


def moves(found: Preview) -> list[Action]:
    return [action for action in found.actions if action.verb in ("load", "sleep", "stop")]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from("abcd")), min_size=1, max_size=12),
    st.sets(st.sampled_from("abcd")),
)
def test_the_preview_is_what_the_scheduler_does_next(arrivals: list[tuple[float, str]], sleepers: set[str]) -> None:
    """Without further requests, from any moment to the end of all work."""
    profiles = [ServerProfile(key, 10.0, sleeps=key in sleepers, host_memory=10.0) for key in "abcd"]
    scheduler = scheduler_of(profiles, memory=20.0, host_memory=20.0)
    for ticket, (at, key) in enumerate(sorted(arrivals)):
        scheduler.request_arrived(ticket, key, at)
    now, promised = 20.0, None
    for _ in range(100):
        expected = preview(scheduler.state(now), scheduler.loading())
        orders, admitted, next_check = scheduler.decide(now)
        if orders:
            assert expected.at == now
            assert moves(expected) == orders
        assert promised is None or promised == orders
        promised = None
        for ticket in admitted:
            scheduler.request_ended(ticket, now)
        loads = [order.key for order in orders if order.verb == "load"]
        unloads = [order for order in orders if order.verb != "load"]
        if not orders and not admitted:
            if next_check is None:
                break
            assert expected.at is None or expected.at >= now
            now = max(next_check, now)
            continue
        for order in unloads:
            scheduler.server_unloaded(order.key, "asleep" if order.verb == "sleep" else "stopped")
        now += UNLOAD_SECONDS if unloads else 0.0
        for key in loads:
            then = preview(scheduler.state(now), scheduler.loading())
            now += LOAD_SECONDS
            promised = moves(then) if then.at == now else None
            scheduler.server_loaded(key, now)
    assert not any(server.waiting for server in scheduler.state(now).servers)
