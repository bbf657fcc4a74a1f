"""`decide()`: select the expert for a classified request. Pure: no clock, no randomness, no state.

The rule is Jain et al. 2024 (arXiv 2412.01868) with the router's posterior in place of its most likely category: of the
experts that can take the request, the one of highest utility, which is expected quality minus price. Pinned, sticky and
uncertain requests and the health of experts modify it. Exploration selects another expert of nearly the same utility
for a share of requests, with exact propensities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.core import NO_RECIPE, OPTIONAL_CAPABILITIES, Capability, Chat, Decision, Health, Prediction, Reason
from coe.errors import Cause, InvalidRequest, ModelNotFound
from coe.experts.variants import contradiction
from coe.mapping import Assignment, expected_price, expected_utility
from coe.registry import AUTO, ArmSpec, ExpertSpec, ExpertVariant, Policy, Registry

MAX_CHARACTERS_PER_TOKEN = 8
"""No tokenizer exceeds this on real text, so a longer chat certainly does not fit into the context."""
_TRANSLATED_APIS = frozenset({"responses", "messages"})
"""APIs that are translated for an expert with chat only."""
_HEALTHY = Health()


@dataclass(frozen=True, slots=True)
class Previous:
    """The expert of a conversation's last answer, empty if it is unknown or there is none.

    `continues`: the request has no topic of its own (`RoutedText.continues`), so the expert stays whatever the
    utilities. `in_loop`: it has the results of tools that the answer called, so the expert stays also if overloaded.
    `switching_cost` is the price of the prefix cache that another expert does not have, in expected quality.
    `escalate_to` is the expert that continues a stuck session, else empty. `escalated`: the session was stuck before.
    """

    expert: str = ""
    continues: bool = False
    in_loop: bool = False
    switching_cost: float = 0.0
    escalate_to: str = ""
    escalated: bool = False


NO_PREVIOUS = Previous()


def decide(
    chat: Chat,
    prediction: Prediction,
    *,
    registry: Registry,
    assignment: Assignment,
    confidence_threshold: float = 0.0,
    previous: Previous = NO_PREVIOUS,
    extra_price: NDArray[np.float64] | None = None,
    health_by_expert: Mapping[str, Health] = MappingProxyType({}),
    uniform: float | None = None,
    recipe: str = "",
) -> Decision:
    """Select the expert and the fallback order.

    Only eligible experts count, and arms of recipes with a measured quality. A pinned expert or recipe is selected
    whatever its health; `recipe` (`RequestOptions.recipe`) pins one too, or excludes all. The `previous` expert of a
    conversation stays if the request continues its task, or unless another one is better by more than `sticky_margin`
    and the switching cost. Below the confidence threshold (declared, or else trained) the general expert is selected,
    otherwise the expert of highest utility. An expert that is down is replaced (a fallback); an overloaded one is, if
    the other is worse by at most `max_quality_loss`.

    `extra_price`, shape (n_experts,) in units of quality, is added to the plan's expected prices; it is negative where
    passages are expected to add quality. An expert that `health_by_expert` lacks is up and idle. `uniform`, drawn from
    [0, 1), makes routed requests explore as declared; the decision then has the exact propensity.

    Raises ModelNotFound or InvalidRequest if no expert can take the request.
    """
    category, confidence = assignment.categories[prediction.best], prediction.confidence
    if pinned := _pinned_arm(chat, registry, recipe):
        return Decision(pinned, category, confidence, "pinned", (pinned,))
    utilities, prices = _utilities_and_prices(assignment, prediction, extra_price)
    eligible = _eligible(chat, registry, utilities, recipe)
    if registry.variants:
        utilities = _with_experts_of_variants(utilities, eligible, registry)
    policy = registry.policy
    threshold = confidence_threshold if policy.confidence_threshold is None else policy.confidence_threshold
    general = registry.general_expert if confidence < threshold else None
    candidates = _Candidates.of(eligible, utilities, health_by_expert)
    expert, reason = _select(candidates, policy, previous=previous, general=general)
    propensity, avoided = 1.0, ""
    if reason != "escalated":
        avoided = _avoided(candidates, policy, previous=previous, general=general)
    if avoided:
        reason = "fallback"
    if uniform is not None and reason == "routed":
        unmeasured = assignment.unmeasured_experts(prediction.best)
        expert, reason, propensity = _explore(expert, candidates, policy, uniform=uniform, unmeasured=unmeasured)
    order = candidates.fallback_order(expert, stand_in=registry.arm(expert).stand_in)
    if registry.recipe_arms:
        order = _one_arm_of_each_recipe(order)
    return Decision(
        expert,
        category,
        confidence,
        reason,
        order,
        propensity,
        utility=tuple(utilities[name] for name in order),
        price=tuple(prices[name] for name in order) if any(prices.values()) else (),
        fallback_from=avoided,
        cause=(health_by_expert[avoided].cause or "circuit_open") if avoided else "",
    )


def _utilities_and_prices(
    assignment: Assignment, prediction: Prediction, extra_price: NDArray[np.float64] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the expected utility and price of each column of the assignment by name."""
    utility = expected_utility(assignment, prediction.probabilities)
    price = expected_price(assignment, prediction.probabilities)
    if extra_price is not None:
        utility, price = utility - extra_price, price + extra_price
    names = assignment.experts
    return dict(zip(names, utility.tolist(), strict=True)), dict(zip(names, price.tolist(), strict=True))


def _with_experts_of_variants(
    utilities: dict[str, float], eligible: Sequence[str], registry: Registry
) -> dict[str, float]:
    """Give experts the utility of their variants, where a request cannot go to any arm that the plan allows.

    A client's own parameter makes a variant ineligible; its expert then answers, with that parameter.
    """
    if any(np.isfinite(utilities[name]) for name in eligible if name in utilities):
        return utilities
    allowed = [one for one in registry.variants if np.isfinite(utilities.get(one.name, -np.inf))]
    of_experts: dict[str, float] = {}
    for one in allowed:
        of_experts[one.variant_of] = max(utilities[one.name], of_experts.get(one.variant_of, -np.inf))
    return {**utilities, **{name: value for name, value in of_experts.items() if name in utilities}}


def with_fallback(decision: Decision, expert: str, *, cause: Cause) -> Decision:
    """Return the decision with another expert, because its own did not answer for `cause`."""
    first, why = (decision.fallback_from, decision.cause) if decision.fallback_from else (decision.expert, cause)
    return replace(decision, expert=expert, reason="fallback", fallback_from=first, cause=why)


def _pinned_arm(chat: Chat, registry: Registry, recipe: str) -> str:
    """Return the expert or arm that the request demands, empty if it demands none.

    Raises ModelNotFound or InvalidRequest if it is unknown or cannot take the chat.
    """
    if chat.model == AUTO:
        if recipe in ("", NO_RECIPE):
            return ""
        model = recipe
        check_recipe(recipe, registry)
    else:
        model = chat.model
        check_model(chat, registry)
        if recipe not in ("", model) and not (recipe == NO_RECIPE and model in registry.single_names):
            message = f"model {model!r} and x-coe-recipe {recipe!r} contradict each other: send model {AUTO!r}"
            raise InvalidRequest(message, param="x-coe-recipe")
    pinned = registry.arm_of_model[model]
    spec = registry.arm(pinned)
    if reason := ineligibility(chat, spec):
        raise InvalidRequest(f"{reason}{_remedy(chat, [spec])}", param="model", code="no_capable_expert")
    return pinned


def _eligible(chat: Chat, registry: Registry, utilities: Mapping[str, float], recipe: str) -> list[str]:
    """Return the names of the eligible experts and arms. Raises InvalidRequest if no expert can take the chat."""
    eligible = _eligible_experts(chat, registry)
    if registry.recipe_arms and recipe != NO_RECIPE:
        eligible += _eligible_arms(chat, registry, utilities)
    return _with_optional_capabilities(eligible, chat, registry) if chat.needs else eligible


def _eligible_experts(chat: Chat, registry: Registry) -> list[str]:
    """Return the names of the eligible experts. Raises InvalidRequest if none can take the chat."""
    eligible = [spec.name for spec in registry.single_arms if not ineligibility(chat, spec)]
    if not eligible:
        reasons = "; ".join(ineligibility(chat, spec) for spec in registry.single_arms)
        experts = sorted(registry.experts, key=lambda expert: expert.name != registry.general_expert)
        message = f"no expert can take this request: {reasons}{_remedy(chat, experts)}"
        raise InvalidRequest(message, code="no_capable_expert")
    if chat.api == "embeddings" and len(eligible) > 1:
        message = f"vectors of different models are not comparable: set model to one of {', '.join(eligible)}"
        raise InvalidRequest(message, param="model", code="ambiguous_model")
    if chat.api == "responses":
        _check_stored_state(chat)
    return eligible


def _with_optional_capabilities(eligible: list[str], chat: Chat, registry: Registry) -> list[str]:
    """Return those of the eligible that declare the optional capabilities of a chat, each as far as any does."""
    for need in sorted(chat.needs & OPTIONAL_CAPABILITIES):
        sufficient = {need, "json_schema"} if need == "json_object" else {need}
        capabilities = {name: registry.arm(name).capabilities for name in eligible}
        if any(need in found for found in capabilities.values()):
            eligible = [name for name, found in capabilities.items() if not sufficient.isdisjoint(found)]
    return eligible


def _remedy(chat: Chat, specs: Sequence[ExpertSpec | ArmSpec]) -> str:
    """Return the line of experts.yaml with which an expert could take a chat; empty if it lacks no capability."""
    for spec in specs:
        if isinstance(spec, ExpertSpec) and _missing_capabilities(chat, spec):
            needed = ", ".join(sorted(spec.capabilities | (chat.needs - OPTIONAL_CAPABILITIES)))
            return (
                f". If its model supports this, say so in experts.yaml: add `capabilities: [{needed}]` to the expert "
                f"{spec.expert_name!r}{'' if len(specs) == 1 else ' or another'}"
            )
    return ""


def _check_stored_state(chat: Chat) -> None:
    """Raise InvalidRequest for a chat that depends on state that an earlier answer stored on one server."""
    for name in ("previous_response_id", "conversation"):
        if chat.fields.get(name):
            message = f"{name} is known to one expert only: write its name as model (the model of the earlier answer)"
            raise InvalidRequest(message, param="model")


def _eligible_arms(chat: Chat, registry: Registry, utilities: Mapping[str, float]) -> list[str]:
    """Return the eligible arms of recipes whose quality was measured for the category."""
    if single_expert_reason(chat):
        return []
    return [
        arm.name
        for arm in registry.recipe_arms
        if utilities.get(arm.name, -np.inf) > -np.inf and not ineligibility(chat, arm)
    ]


def check_model(chat: Chat, registry: Registry) -> None:
    """Raise ModelNotFound for a model name that is not declared."""
    if chat.model != AUTO and chat.model not in registry.arm_of_model:
        raise ModelNotFound(
            f"the model {chat.model!r} does not exist here; known: {', '.join(registry.listed_models)}. For clients "
            "with a fixed model name, declare an alias in experts.yaml, such as aliases: {gpt-*: auto}",
            param="model",
        )


def check_recipe(recipe: str, registry: Registry) -> None:
    """Raise ModelNotFound for a value of x-coe-recipe that names no recipe."""
    names = [one.name for one in registry.declared_recipes]
    if recipe not in (*names, *(arm.name for arm in registry.recipe_arms)):
        known = ", ".join((NO_RECIPE, *names))
        raise ModelNotFound(f"the recipe {recipe!r} does not exist here; known: {known}", param="x-coe-recipe")


def single_expert_reason(chat: Chat) -> str:
    """Return why a chat goes to single experts only; empty if a recipe can take it."""
    if chat.api != "chat":
        return f"recipes do not support the {chat.api} API"
    fields = chat.fields
    if (choices := fields.get("n")) is not None and choices != 1:
        return "recipes give one answer, not n"
    if fields.get("logprobs") or fields.get("top_logprobs"):
        return "recipes give no log probabilities"
    modalities = fields.get("modalities")
    if fields.get("audio") or (isinstance(modalities, list) and "audio" in modalities):
        return "recipes give no audio"
    return ""


def _missing_capabilities(chat: Chat, spec: ExpertSpec | ArmSpec) -> frozenset[Capability]:
    """Return the capabilities that an expert must have for a chat and does not declare."""
    return chat.needs - spec.capabilities - OPTIONAL_CAPABILITIES if chat.needs else chat.needs


def ineligibility(chat: Chat, spec: ExpertSpec | ArmSpec) -> str:
    """Return why an expert or arm cannot take a chat; empty if it can."""
    if isinstance(spec, ArmSpec):
        if reason := single_expert_reason(chat):
            return f"{spec.name}: {reason}"
        if reason := next(filter(None, (_contradicted(chat, member) for member in spec.members)), ""):
            return reason
    elif chat.api not in spec.supported_apis and not (chat.api in _TRANSLATED_APIS and "chat" in spec.supported_apis):
        return f"{spec.name} does not support the {chat.api} API"
    elif reason := _contradicted(chat, spec):
        return reason
    if missing := _missing_capabilities(chat, spec):
        return f"{spec.name} has no {', no '.join(sorted(missing))}"
    if chat.characters > spec.context_length * MAX_CHARACTERS_PER_TOKEN:
        return (
            f"{spec.name} has a context of {spec.context_length} tokens and the chat has {chat.characters} characters"
        )
    return ""


def _contradicted(chat: Chat, spec: ExpertSpec) -> str:
    """Return why a variant cannot take a chat that sets one of its parameters otherwise; empty if it can."""
    if not isinstance(spec, ExpertVariant) or not (field := contradiction(chat, spec)):
        return ""
    remedy = f"leave {field} out of the request, or request {spec.variant_of!r}"
    return f"{spec.name} sets {field} to another value than the request; {remedy}"


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The eligible experts by `utility`.

    `ranked` is in order of utility, with experts that are down after all that are up. `selectable` are the experts that
    are up, or all if none is. `free` are up and not overloaded.
    """

    utility: Mapping[str, float]
    ranked: tuple[str, ...]
    selectable: tuple[str, ...]
    free: tuple[str, ...]

    @classmethod
    def of(
        cls, eligible: Sequence[str], utility: Mapping[str, float], health_by_expert: Mapping[str, Health]
    ) -> _Candidates:
        ranked = sorted((name for name in utility if name in eligible), key=utility.__getitem__, reverse=True)
        up = tuple(name for name in ranked if health_by_expert.get(name, _HEALTHY).up)
        down = tuple(name for name in ranked if name not in up)
        free = tuple(name for name in up if health_by_expert.get(name, _HEALTHY).load < 1)
        return cls(utility, (*up, *down), up or down, free)

    def fallback_order(self, first: str, *, stand_in: str | None) -> tuple[str, ...]:
        """Return all candidates: the selected one, its stand-in, then the others by rank."""
        return first, *sorted((name for name in self.ranked if name != first), key=(stand_in or first).__ne__)


def _one_arm_of_each_recipe(order: tuple[str, ...]) -> tuple[str, ...]:
    """Drop further arms of a recipe, which would call the same members again after they failed."""
    by_recipe: dict[str, str] = {}
    for name in order:
        by_recipe.setdefault(name.partition("@")[0], name)
    return tuple(by_recipe.values())


def _select(candidates: _Candidates, policy: Policy, *, previous: Previous, general: str | None) -> tuple[str, Reason]:
    """Return the selected expert and the reason. `general` is None unless the request is uncertain."""
    utility, free = candidates.utility, candidates.free
    if previous.escalate_to in candidates.selectable:
        return previous.escalate_to, "escalated"
    expert, reason = _prefer(candidates.selectable, utility, policy, previous=previous, general=general)
    if previous.in_loop and reason == "sticky":
        return expert, reason
    if expert not in free and free and utility[expert] - utility[free[0]] <= policy.max_quality_loss:
        return free[0], "spilled"
    return expert, reason


def _avoided(candidates: _Candidates, policy: Policy, *, previous: Previous, general: str | None) -> str:
    """Return the expert that would be preferred if all were up, if it is down and another one is up; else ""."""
    if len(candidates.selectable) == len(candidates.ranked):
        return ""
    utility = candidates.utility
    ranked = tuple(sorted(candidates.ranked, key=utility.__getitem__, reverse=True))
    expert, _ = _prefer(ranked, utility, policy, previous=previous, general=general)
    return "" if expert in candidates.selectable else expert


def _prefer(
    ranked: tuple[str, ...],
    utility: Mapping[str, float],
    policy: Policy,
    *,
    previous: Previous,
    general: str | None,
) -> tuple[str, Reason]:
    """Return the preferred expert among `ranked`, regardless of its load, and the reason."""
    best = ranked[0]
    if previous.expert in ranked:
        loss = utility[best] - utility[previous.expert]
        if previous.continues or general or loss <= policy.sticky_margin + previous.switching_cost:
            return previous.expert, "sticky"
    return (general, "uncertain") if general in ranked else (best, "routed")


def _explore(
    best: str, candidates: _Candidates, policy: Policy, *, uniform: float, unmeasured: frozenset[str]
) -> tuple[str, Reason, float]:
    """Return the expert to call, the reason, and the propensity.

    An `unmeasured` expert has no expected quality; it counts as worse by exactly the largest loss of exploration.
    """
    names = tuple(dict.fromkeys((best, *candidates.free)))
    exploration = policy.exploration
    lowest = candidates.utility[best] - exploration.max_quality_loss
    utility = np.array([lowest if name in unmeasured else candidates.utility[name] for name in names])
    if np.isneginf(candidates.utility[best]):  # the plan allows none of the eligible experts for this category
        return best, "routed", 1.0
    index, propensity = choose(utility, rate=exploration.rate, loss=exploration.max_quality_loss, uniform=uniform)
    return names[index], "explored" if index else "routed", propensity


def choose(utility: NDArray[np.floating], *, rate: float, loss: float, uniform: float) -> tuple[int, float]:
    """Return the index of the selected expert and its propensity; `uniform` is drawn from [0, 1)."""
    probabilities = propensities(utility, rate=rate, loss=loss)
    bounds = np.cumsum(probabilities)
    index = int(np.searchsorted(bounds, uniform * bounds[-1], side="right"))
    return index, float(probabilities[index])


def propensities(utility: NDArray[np.floating], *, rate: float, loss: float) -> NDArray[np.float64]:
    """Return the selection probability of each expert, shape (n_experts,), or (n, n_experts) for n requests.

    `utility` is expected quality minus price, -inf for an expert that may not answer. With probability `rate`, one of
    the other experts within `loss` of the best is selected uniformly; otherwise the best one, or uniformly one of
    several equal best ones. Off-policy estimates use these probabilities as exact weights. Raises ValueError if no
    expert may answer.
    """
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    is_best = utility == best
    explored = (utility >= best - loss) & np.isfinite(utility) & ~is_best
    count = explored.sum(axis=-1, keepdims=True)
    explored_mass = np.where(count > 0, rate, 0.0)
    best_probability = (1.0 - explored_mass) / is_best.sum(axis=-1, keepdims=True)
    other_probability = np.where(explored, explored_mass / np.maximum(count, 1), 0.0)
    return np.asarray(np.where(is_best, best_probability, other_probability))
