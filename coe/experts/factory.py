"""Builds experts from their declaration; a reload reuses unchanged ones with their state.

An expert that shares a device: each call holds it awake from before the request until the last byte.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Protocol

from coe.core import Call, Expert, Health, Reply
from coe.errors import ConfigError
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.registry import ExpertSpec, Registry
from coe.settings import Endpoint


class ResidencyHold(Protocol):
    """Loads experts on demand. Implemented by `coe.fleet.residency.client.ResidencyClient`."""

    async def hold(self, expert: str, *, category: str, deadline: float, stand_in: str) -> Callable[[], None]:
        """Waits until the expert is awake, at most until `deadline` (event loop clock), and not at all if the expert
        `stand_in` is awake. Returns the function that releases it. Raises ExpertAsleep."""


class ResidentExpert:
    """Calls `expert` while it is held awake. `stand_in` names the expert that may answer in its place, if any."""

    health = Health()

    def __init__(self, expert: Expert, *, stand_in: str | None, residency: ResidencyHold) -> None:
        self.name = expert.name
        self._expert = expert
        self._stand_in = stand_in
        self._residency = residency

    async def stream(self, call: Call) -> Reply:
        """Holds the expert, then calls it. Raises what either raises."""
        stand_in = call.stand_in if call.stand_in == self._stand_in else ""
        release = await self._residency.hold(
            self.name, category=call.category, deadline=call.wake_deadline, stand_in=stand_in
        )
        try:
            return _ResidentReply(await self._expert.stream(call), release)
        except BaseException:
            release()
            raise

    async def aclose(self) -> None:
        await self._expert.aclose()


class _ResidentReply:
    """A reply that holds its expert awake until its last byte."""

    __slots__ = ("_release", "_reply", "media_type", "usage")

    def __init__(self, reply: Reply, release: Callable[[], None]) -> None:
        self.media_type = reply.media_type
        self.usage = reply.usage
        self._reply = reply
        self._release: Callable[[], None] | None = release

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        chunks = self._reply.chunks()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            self._finish()
            await chunks.aclose()

    async def aclose(self) -> None:
        self._finish()
        await self._reply.aclose()

    def _finish(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def build_experts(
    registry: Registry,
    started: Mapping[str, tuple[Endpoint, ...]],
    *,
    session: Client,
    previous: Mapping[str, ReplicatedExpert] | None = None,
    residency: ResidencyHold | None = None,
) -> dict[str, ReplicatedExpert]:
    """Returns every declared expert by name, in the order of the declaration.

    `started` holds the endpoints of the running local servers (Settings.endpoints). With `residency`, local experts
    share devices and are held until they are loaded. An expert of `previous` is reused if its declaration and addresses
    are the same. Raises ConfigError for a local expert that is not started.
    """
    experts = {}
    for spec in registry.experts:
        endpoints = endpoints_of(spec, started)
        old = (previous or {}).get(spec.name)
        if old is not None and (old.spec, old.endpoints) == (spec, endpoints):
            experts[spec.name] = old
        else:
            experts[spec.name] = _build(spec, endpoints, session, residency)
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
    spec: ExpertSpec, endpoints: tuple[Endpoint, ...], session: Client, residency: ResidencyHold | None
) -> ReplicatedExpert:
    if spec.runtime == "litellm":
        replicas = [Replica(_through_litellm(spec, endpoint)) for endpoint in endpoints or (None,)]
    else:
        replicas = [Replica(_served(spec, endpoint, session, residency), endpoint=endpoint) for endpoint in endpoints]
    return ReplicatedExpert(spec, endpoints, replicas=replicas)


def _served(spec: ExpertSpec, endpoint: Endpoint, session: Client, residency: ResidencyHold | None) -> Expert:
    expert = _ServedExpert(spec, endpoint, session)
    if residency is None or spec.addresses:
        return expert
    return ResidentExpert(expert, stand_in=spec.stand_in, residency=residency)


def _through_litellm(spec: ExpertSpec, endpoint: Endpoint | None) -> Expert:
    from coe.experts.litellm.expert import LitellmExpert

    expert: Expert = LitellmExpert(spec, endpoint)
    return expert


class _ServedExpert:
    """One server. APIs that it speaks are passed through; others are translated by litellm."""

    health = Health()

    def __init__(self, spec: ExpertSpec, endpoint: Endpoint, session: Client) -> None:
        self.name = spec.name
        self._spec = spec
        self._endpoint = endpoint
        self._native = HttpExpert(spec, endpoint, session=session)
        self._translation: Expert | None = None

    def stream(self, call: Call) -> Coroutine[Any, Any, Reply]:
        if call.api in self._spec.supported_apis:
            return self._native.stream(call)
        if self._translation is None:
            self._translation = _through_litellm(self._spec, self._endpoint)
        return self._translation.stream(call)

    async def aclose(self) -> None:
        """Does nothing: the session belongs to its opener."""
