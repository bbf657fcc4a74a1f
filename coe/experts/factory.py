"""Builds experts from their declaration; a reload reuses unchanged ones with their state.

A local expert that shares a device is a `ResidentExpert`: each call keeps it awake from before the request until the
last byte. Experts behind litellm are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from coe.core import Call, Expert, Health, Reply
from coe.errors import ConfigError
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.replicas import Replica, ReplicatedExpert, TrackedReply
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec, Registry
from coe.settings import Endpoint


def build_experts(
    registry: Registry,
    started: Mapping[str, tuple[Endpoint, ...]],
    *,
    session: Client,
    previous: Mapping[str, ReplicatedExpert] | None = None,
    residency: ExpertLoader | None = None,
) -> dict[str, ReplicatedExpert]:
    """Returns every declared expert by name, in the order of the declaration.

    `started` holds the endpoints of the running local servers (Settings.endpoints). With `residency`, local experts
    share devices and wait until they are loaded. An expert of `previous` is reused if its declaration and addresses
    are the same. Raises ConfigError for a local expert that is not started.
    """
    experts = {}
    for spec in registry.experts:
        endpoints = endpoints_of(spec, started)
        old = (previous or {}).get(spec.name)
        if old is None or (old.spec, old.endpoints) != (spec, endpoints):
            old = _build(spec, endpoints, session, residency)
        experts[spec.name] = old
    return experts


def endpoints_of(spec: ExpertSpec, started: Mapping[str, tuple[Endpoint, ...]]) -> tuple[Endpoint, ...]:
    """Returns one endpoint for each replica; none if the provider's own address is meant. Raises ConfigError for a
    local expert that is not started."""
    if spec.addresses:
        return tuple(Endpoint(address, spec.model) for address in spec.addresses)
    if spec.runtime == "litellm":
        return ()
    if not started.get(spec.name):
        raise ConfigError(f"expert {spec.name!r} runs locally and is not started; use `coe up`, which starts it")
    return started[spec.name]


def _build(
    spec: ExpertSpec, endpoints: tuple[Endpoint, ...], session: Client, residency: ExpertLoader | None
) -> ReplicatedExpert:
    def replica(endpoint: Endpoint | None) -> Replica:
        expert: Expert
        if spec.runtime == "litellm":
            from coe.experts.litellm import LitellmExpert

            expert = LitellmExpert(spec, endpoint)
        else:
            assert endpoint is not None
            expert = HttpExpert(spec, endpoint, session=session)
        if "chat" in spec.supported_apis:
            expert = TranslatedExpert(expert, spec)
        if residency is not None and spec.runtime != "litellm" and not spec.addresses:
            expert = ResidentExpert(expert, stand_in=spec.stand_in, residency=residency)
        return Replica(expert, endpoint=endpoint)

    servers = endpoints or ((None,) if spec.runtime == "litellm" else ())
    return ReplicatedExpert(spec, endpoints, replicas=[replica(endpoint) for endpoint in servers])


class ExpertLoader(Protocol):
    """Loads experts on demand. Implemented by `coe.fleet.residency.client.ResidencyClient`."""

    async def acquire(self, expert: str, *, deadline: float, stand_in: str) -> Callable[[], None]:
        """Waits until the expert is awake, at most until `deadline` (event loop clock), and not at all if the expert
        `stand_in` is awake. Returns the function that releases it. Raises ExpertAsleep."""

    async def report(self) -> list[dict[str, Any]]:
        """Return the state of each device and the reasons for it. Raises ExpertAsleep if the fleet does not answer."""


class ResidentExpert:
    """Keeps `expert` awake during each call. `stand_in` names the expert that may answer in its place, if any."""

    health = Health()

    def __init__(self, expert: Expert, *, stand_in: str | None, residency: ExpertLoader) -> None:
        self.name = expert.name
        self._expert = expert
        self._stand_in = stand_in
        self._residency = residency

    async def stream(self, call: Call) -> Reply:
        """Waits until the expert is awake, calls it, and releases it after the reply. Raises what either raises."""
        stand_in = call.stand_in if call.stand_in == self._stand_in else ""
        release = await self._residency.acquire(self.name, deadline=call.wake_deadline, stand_in=stand_in)
        try:
            return TrackedReply(await self._expert.stream(call), lambda *_: release())
        except BaseException:
            release()
            raise
