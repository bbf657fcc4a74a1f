"""The error of a request that finds no file descriptor left for a connection to an expert."""

import asyncio
import errno
import socket
from typing import Any

import pytest

from coe.core import Call
from coe.errors import OutOfDescriptors
from coe.experts import error_mapping
from coe.experts.error_mapping import out_of_descriptors
from coe.experts.factory import build_experts
from coe.experts.health_checks import HealthChecks
from coe.experts.http.client import Client, Unreachable
from coe.registry import Registry
from coe.routing.attempts import Attempts, call_experts
from gateway.errors import headers_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def full(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every new connection fail for lack of descriptors; the list counts the attempts."""
    attempts: list[int] = []

    async def create(*_: Any, **__: Any) -> Any:
        attempts.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create)
    return attempts


async def test_a_descriptor_shortage_is_not_retried_and_is_no_server_failure(full: list[int]) -> None:
    registry = registry_of("a", "b")
    call = Call({"messages": []}, True, 5, 5)
    async with Client() as session:
        experts = build_experts(registry, {}, session=session)
        for _ in range(12):
            attempts = Attempts()
            with pytest.raises(OutOfDescriptors) as caught:
                await call_experts(
                    call, list(experts.values()), max_attempts=3, deadline=float("inf"), attempts=attempts
                )
            assert attempts.count == 0
    assert len(full) == 12
    assert all(replica.state == "closed" for expert in experts.values() for replica in expert.replicas)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert headers_of(caught.value) == [(b"retry-after", b"1")]


async def test_a_descriptor_shortage_does_not_fail_a_health_check(full: list[int]) -> None:
    async with Client() as session:
        experts = build_experts(registry_of("a"), {}, session=session)
        (replica,) = experts["a"].replicas
        await HealthChecks(session).run_round(experts.values())
        assert full
        assert replica.alive is None


def test_only_a_descriptor_shortage_is_detected_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def caused_by(error: OSError) -> Exception:
        outer = RuntimeError("wrapped")
        outer.__context__ = error
        return outer

    for number in (errno.EMFILE, errno.ENFILE):
        assert out_of_descriptors(caused_by(OSError(number, "")))
    unclear = (OSError("several failures"), socket.gaierror(socket.EAI_AGAIN, "try again"))
    others = (ConnectionRefusedError(errno.ECONNREFUSED, ""), Unreachable("x"), ValueError(), *unclear)
    assert not any(out_of_descriptors(error) for error in others)

    def full(_: int) -> int:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(error_mapping.os, "dup", full)
    assert all(out_of_descriptors(error) for error in unclear)


def registry_of(*names: str) -> Registry:
    experts = [
        {"name": name, "model": "m", "runtime": "external", "base_url": f"http://127.0.0.1:{port}/v1"}
        for port, name in enumerate(names, start=1)
    ]
    return Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": "general", "description": "g"}],
            "experts": experts,
            "assignment": {"general": names[0]},
        }
    )
