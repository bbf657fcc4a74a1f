"""From declared experts to experts that can be asked; what did not change keeps its connections' history."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from coe.core import Call, Expert, Health, Reply
from coe.errors import ConfigError
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.experts.residency import ResidencyHold, ResidentExpert
from coe.registry import ExpertSpec, Registry
from coe.settings import Endpoint


def build_experts(
    registry: Registry,
    started: Mapping[str, tuple[Endpoint, ...]],
    *,
    session: Client,
    previous: Mapping[str, ReplicatedExpert] | None = None,
    turns: ResidencyHold | None = None,
) -> dict[str, ReplicatedExpert]:
    """Every declared expert by name, in the order of the declaration.

    `started` holds the local servers that run (Settings.endpoints); with `turns` they take turns. An expert of
    `previous` whose declaration and addresses are the same is taken over as it is, with its breakers, its requests in
    flight and its measured times.
    Raises ConfigError for a local expert that nobody started.
    """
    experts = {}
    for spec in registry.experts:
        endpoints = endpoints_of(spec, started)
        old = (previous or {}).get(spec.name)
        same = old is not None and (old.spec, old.endpoints) == (spec, endpoints)
        experts[spec.name] = old if old is not None and same else _build(spec, endpoints, session, turns)
    return experts


def endpoints_of(spec: ExpertSpec, started: Mapping[str, tuple[Endpoint, ...]]) -> tuple[Endpoint, ...]:
    """Where an expert is served, one endpoint a replica; none where a provider's own address is meant. Raises
    ConfigError for a local expert that nobody started."""
    if spec.addresses:
        return tuple(Endpoint(address, spec.model) for address in spec.addresses)
    if spec.runtime == "litellm":
        return ()
    if not started.get(spec.name):
        raise ConfigError(f"expert {spec.name!r} runs locally and is not started; use `coe up`, which starts it")
    return started[spec.name]


def _build(
    spec: ExpertSpec, endpoints: tuple[Endpoint, ...], session: Client, turns: ResidencyHold | None
) -> ReplicatedExpert:
    if spec.runtime == "litellm":
        replicas = [Replica(_through_litellm(spec, endpoint)) for endpoint in endpoints or (None,)]
    else:
        spoken = [(_Spoken(spec, endpoint, session), endpoint) for endpoint in endpoints]
        turning = None if spec.addresses else turns
        replicas = [Replica(_in_turn(expert, spec, turning), endpoint=endpoint) for expert, endpoint in spoken]
    return ReplicatedExpert(spec, endpoints, replicas=replicas)


def _in_turn(expert: Expert, spec: ExpertSpec, turns: ResidencyHold | None) -> Expert:
    return expert if turns is None else ResidentExpert(expert, stand_in=spec.stand_in, turns=turns)


def _through_litellm(spec: ExpertSpec, endpoint: Endpoint | None) -> Expert:
    from coe.experts.litellm.expert import LitellmExpert

    expert: Expert = LitellmExpert(spec, endpoint)
    return expert


class _Spoken:
    """One server: asked directly for what it speaks, through a translation for what it does not."""

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
        """Nothing of its own to close."""
