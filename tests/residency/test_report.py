"""The explanation of a device: it names why a request waits."""

from __future__ import annotations

from typing import Any

from coe.cli.report import _residency_rows
from coe.fleet.residency.report import device_report
from coe.fleet.residency.state import DeviceState, ServerProfile, ServerState

A, B, C = (ServerProfile(key, 10.0) for key in "abc")
NAMES = {"a": ["law"], "b": ["code"], "c": ["chat"]}


def report(*servers: ServerState, now: float = 0.0) -> dict[str, Any]:
    return device_report("gpu0", DeviceState(now, 10.0, 0.0, 30.0, servers), NAMES)


def reasons(*servers: ServerState, now: float = 0.0) -> dict[str, str]:
    return {one["experts"][0]: one["reason"] for one in report(*servers, now=now)["servers"]}


def test_coe_status_shows_a_device_and_its_experts() -> None:
    law = ServerState(A, "awake", in_flight={1}, switches=1)
    code = ServerState(B, "asleep", waiting={2: 1.0, 3: 3.0}, load_seconds=2.0, switches=2)
    device, first, second = _residency_rows(report(law, code, now=4.0))
    assert device == ("device gpu0", "10 of 10 GB in use")
    assert first == ("expert law", "awake, loaded 1 times")
    assert second[1] == (
        "asleep, loaded 2 times, a load took 2.0 s, 2 waiting, the oldest for 3.0 s: "
        "waits until other experts are idle; after 30 s they take no new requests"
    )


def test_a_load_under_way_shows_since_when_and_others_wait_for_it() -> None:
    loads = ServerState(A, "loading", loading_since=1.0, from_sleep=True)
    found = reasons(loads, ServerState(B, "stopped", waiting={1: 3.0}), now=4.0)
    assert found["law"] == "has been loading from sleep for 3.0 s"
    assert found["code"] == "waits for its turn after the load under way"


def test_an_expert_that_may_not_start_yet_or_leaves_says_so() -> None:
    failed = ServerState(C, "stopped", waiting={1: 0.0}, retry_at=8.0)
    held = ServerState(B, "awake", waiting={2: 0.0}, in_flight={3})
    found = reasons(ServerState(A, "unloading", waiting={4: 0.0}), held, failed)
    assert found["law"] == "is leaving; its requests wait until it can be loaded again"
    assert found["code"] == "finishes its requests in flight (1) and leaves for an expert that waits longer"
    assert found["chat"] == "failed and may start again in 8.0 s"
    assert reasons(ServerState(A, "unloading"))["law"] == ""
