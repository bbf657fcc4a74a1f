"""Builds experts from their declaration; a reload reuses unchanged ones with their state.

A local expert that shares a device is a `ResidentExpert`: each call keeps it awake from before the request until the
last byte. Experts behind litellm are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from coe.core import Call, Expert, Health, Reply
from coe.errors import ConfigError
from coe.experts.foreign_items import ForeignItems
from coe.experts.http.client import Client
from coe.experts.http.expert import HttpExpert
from coe.experts.recipes.expert import RecipeExpert
from coe.experts.recipes.final_answers.answers import final_answer
from coe.experts.recipes.policy import RecipePolicy, default_policy
from coe.experts.recipes.writing.expert import WritingExpert
from coe.experts.replicas import Replica, ReplicatedExpert, TrackedReply
from coe.experts.translation.expert import TranslatedExpert
from coe.registry import ExpertSpec, Registry
from coe.registry.recipes import RecipeSpec, cap_in_force
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
        if old is not None and (old.spec, old.endpoints) == (spec, endpoints):
            experts[spec.name] = old
        else:
            experts[spec.name] = _build(spec, endpoints, session, residency)
    return experts


def build_recipes(
    registry: Registry,
    experts: Mapping[str, Expert],
    *,
    categories: int,
    policies: Mapping[str, RecipePolicy] | None = None,
) -> dict[str, RecipeExpert | WritingExpert]:
    """Return every arm of the declared recipes by name, over `experts`.

    `policies` are the fitted policies by arm, over posteriors of `categories` categories; an arm without one gets the
    default policy of its recipe.
    """
    fitted = policies or {}
    arms: dict[str, RecipeExpert | WritingExpert] = {}
    for recipe in registry.declared_recipes:
        if recipe.writes:
            arms[recipe.name] = writing_expert(registry, recipe, experts)
            continue
        policy = fitted.get(recipe.name) or default_policy(recipe, categories=categories)
        arms[recipe.name] = RecipeExpert(
            recipe.name,
            experts,
            policy=_with_caps_in_force(policy, registry),
            categories=categories,
            final_answer=final_answer,
            limits=registry.policy,
        )
    return arms


def writing_expert(registry: Registry, recipe: RecipeSpec, experts: Mapping[str, Expert]) -> WritingExpert:
    """Return the arm of a chain or fuse over `experts`, which has at least its members."""
    declared = {name: registry.expert(name) for name in recipe.members}
    return WritingExpert(recipe, experts, declared=declared, limits=registry.policy)


def _with_caps_in_force(policy: RecipePolicy, registry: Registry) -> RecipePolicy:
    """Return the policy without caps that the declared parameters of its members do not allow."""
    return policy.with_caps({name: cap_in_force(cap, registry.expert(name)) for name, cap in policy.max_tokens.items()})


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
    if spec.runtime == "litellm":
        replicas = [_litellm_replica(spec, endpoint) for endpoint in endpoints or (None,)]
    else:
        replicas = [_http_replica(spec, endpoint, session, residency) for endpoint in endpoints]
    return ReplicatedExpert(spec, endpoints, replicas=replicas)


def _http_replica(spec: ExpertSpec, endpoint: Endpoint, session: Client, residency: ExpertLoader | None) -> Replica:
    def resident(expert: Expert) -> Expert:
        if residency is None or spec.addresses:
            return expert
        return ResidentExpert(expert, stand_in=spec.stand_in, residency=residency)

    direct = HttpExpert(spec, endpoint, session=session)
    expert: Expert = ForeignItems(direct) if "responses" in spec.supported_apis else direct
    if "chat" not in spec.supported_apis:
        return Replica(resident(expert), endpoint=endpoint)
    return Replica(resident(TranslatedExpert(expert, spec)), chat=resident(direct), endpoint=endpoint)


def _litellm_replica(spec: ExpertSpec, endpoint: Endpoint | None) -> Replica:
    from coe.experts.litellm.expert import LitellmExpert

    direct = LitellmExpert(spec, endpoint)
    return Replica(TranslatedExpert(direct, spec), chat=direct)


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

    async def aclose(self) -> None:
        await self._expert.aclose()
