"""Which experts may answer a request, and `decide()`, which selects one. Pure: no clock, no randomness, no state.

The rule is Jain et al. 2024 (arXiv 2412.01868) with the router's posterior in place of its most likely category: of the
experts that can take the request, the one of highest utility, which is expected quality minus price. Pinned, sticky and
uncertain requests and the health of experts modify it. Exploration selects another expert of nearly the same utility
for a share of requests, with exact propensities.

A request may pin an expert or recipe. All others go to the experts that support its API, have the capabilities that it
needs and enough context, and speak its language. An `ExpertRule` (API key or header) excludes experts before all this:
no expert that it excludes becomes a candidate, as a fallback, stand-in or member of a recipe either.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    NO_RECIPE,
    OPTIONAL_CAPABILITIES,
    TEXT_APIS,
    TRANSLATED_APIS,
    UNDETERMINED,
    Api,
    Capability,
    Chat,
    Decision,
    ExpertRule,
    Health,
    Prediction,
    Reason,
    frozen,
)
from coe.errors import Cause, Forbidden, InvalidRequest, ModelNotFound, ThreadUnsupported
from coe.planning.assignment import Assignment, expected_price, expected_utility
from coe.registry import AUTO, ArmSpec, ExpertSpec, Policy, Registry
from coe.registry.permission import exclusion, permits_model, permitted_models

_HEALTHY = Health()


@frozen
class Previous:
    """The expert of a conversation's last answer, empty if it is unknown or there is none.

    `continues`: the request does not have its own topic (`RoutedText.continues`), so the expert stays whatever the
    utilities. `in_loop`: it has the results of tools that the answer called, so the expert stays also if overloaded.
    """

    expert: str = ""
    continues: bool = False
    in_loop: bool = False


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
    rule: ExpertRule | None = None,
    named: str = "",
    capable: Capable | None = None,
) -> Decision:
    """Select the expert and the fallback order.

    Candidates are eligible experts and recipe arms of measured quality; only those that speak the language, if any do.
    No expert that `rule` excludes is a candidate. A pinned expert or recipe is selected whatever its health; `recipe`
    (`RequestOptions.recipe`) pins one too, or excludes all. The `previous` expert of a conversation stays if the
    request continues its task or is uncertain, or if no other is better by more than `sticky_margin`. Otherwise an
    uncertain request (confidence below the threshold, declared or else trained) goes to the expert of `general`, any
    other to the expert of highest utility. An expert that is down is replaced (a fallback); an overloaded one is, if
    the other is worse by at most `max_quality_loss`. An eligible expert or arm that a rule of experts.yaml has `named`
    is selected before all of these unless it is down.

    `extra_price`, shape (n_experts,) in units of quality, is added to the plan's expected prices; it is negative where
    passages are expected to add quality. An expert that `health_by_expert` lacks is up and idle. `uniform`, drawn from
    [0, 1), makes routed requests explore as declared; the decision then has the exact propensity. `capable` are the
    registry's `CapableArms`, if they are at hand.

    Raises ModelNotFound, Forbidden or InvalidRequest if no expert can take the request.
    """
    category, confidence = assignment.categories[prediction.best], prediction.confidence
    if pinned := pinned_arm(chat, registry, recipe, rule):
        return Decision(pinned, category, confidence, "pinned", (pinned,), rule=prediction.rule)
    utilities, prices = expected_utility(assignment, prediction.probabilities, prediction.residual), dict[str, float]()
    if assignment.is_priced or extra_price is not None:
        price = expected_price(assignment, prediction.probabilities)
        if extra_price is not None:
            utilities, price = utilities - extra_price, price + extra_price
        prices = dict(zip(assignment.experts, price.tolist(), strict=True))
    utility: dict[str, float] = dict(zip(assignment.experts, utilities.tolist(), strict=True))
    capable = capable or CapableArms(registry.arms)
    eligible = eligible_arms(chat, registry, utility, recipe, prediction.language, rule, named, capable)
    if named in eligible:
        previous = Previous(named, continues=True, in_loop=True)  # stays whatever its utility and load
        utility.setdefault(named, -math.inf)
    policy = registry.policy
    threshold = confidence_threshold if policy.confidence_threshold is None else policy.confidence_threshold
    general = assignment.general_expert if confidence < threshold else None

    health = {name: health_by_expert.get(name, _HEALTHY) for name in eligible}
    by_utility = sorted([name for name in utility if name in health], key=utility.__getitem__, reverse=True)
    up = [name for name in by_utility if health[name].up]
    free = [name for name in up if health[name].load < 1]
    ranked = up if len(up) == len(by_utility) else [*up, *(name for name in by_utility if not health[name].up)]

    expert, reason = _prefer(by_utility, utility, policy, previous=previous, general=general)
    avoided = expert if up and expert not in up else ""
    if avoided:
        expert, reason = _prefer(up, utility, policy, previous=previous, general=general)
    if (
        expert not in free
        and free
        and utility[expert] - utility[free[0]] <= policy.max_quality_loss
        and not (previous.in_loop and reason == "sticky")
    ):
        expert, reason = free[0], "spilled"
    chances = dict[str, float]()
    if avoided:
        reason = "fallback"
    elif reason == "sticky" and expert == named:
        reason = "rule"
    elif reason == "routed" and uniform is not None and utility[expert] > -math.inf:  # else the plan allows none
        options = list(dict.fromkeys((expert, *free)))
        rate, loss = policy.exploration.rate, policy.exploration.max_quality_loss
        unmeasured = assignment.unmeasured_experts(prediction.best)  # each counts as worse by exactly the largest loss
        values = np.array([utility[expert] - loss if name in unmeasured else utility[name] for name in options])
        weights = assignment.exploration_weights(prediction.best, options)
        chances = dict(zip(options, propensities(values, rate=rate, loss=loss, weights=weights).tolist(), strict=True))
        index = choose(list(chances.values()), uniform)
        expert, reason = options[index], "explored" if index else "routed"

    stand_in = None if registry.residency is None else registry.arm(expert).stand_in
    if ranked[0] != expert or stand_in:
        ranked = sorted(ranked, key=lambda name: (name != expert, name != stand_in))
    return Decision(
        expert,
        category,
        confidence,
        reason,
        tuple(ranked),
        chances.get(expert, 1.0),
        tuple([chances.get(name, 0.0) for name in ranked]) if chances.get(expert, 1.0) < 1.0 else (),
        utility=tuple([utility[name] for name in ranked]),
        price=tuple([prices.get(name, 0.0) for name in ranked]) if any(prices.values()) else (),
        fallback_from=avoided,
        cause=(health[avoided].cause or "circuit_open") if avoided else "",
        rule=prediction.rule,
    )


def _prefer(
    ranked: Sequence[str], utility: Mapping[str, float], policy: Policy, *, previous: Previous, general: str | None
) -> tuple[str, Reason]:
    """Return the preferred expert among `ranked`, regardless of its load, and the reason. `general` is None unless the
    request is uncertain."""
    best = ranked[0]
    if previous.expert in ranked:
        loss = utility[best] - utility[previous.expert]
        if previous.continues or general or loss <= policy.sticky_margin:
            return previous.expert, "sticky"
    if general is not None and general in ranked:
        return general, "uncertain"
    return best, "routed"


def with_fallback(decision: Decision, expert: str, *, cause: Cause) -> Decision:
    """Return the decision with another expert, because its own did not answer for `cause`."""
    first, why = (decision.fallback_from, decision.cause) if decision.fallback_from else (decision.expert, cause)
    return replace(decision, expert=expert, reason="fallback", fallback_from=first, cause=why)


def choose(probabilities: Sequence[float], uniform: float) -> int:
    """Return the index of the selected expert; `uniform` is drawn from [0, 1)."""
    bounds = list(accumulate(probabilities))
    return bisect_right(bounds, uniform * bounds[-1])


def propensities(
    utility: NDArray[np.floating], *, rate: float, loss: float, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the selection probability of each expert, shape (n_experts,), or (n, n_experts) for n requests.

    `utility` is expected quality minus price, -inf for an expert that may not answer. Each other expert is explored
    with probability `rate` times its weight; without `weights`, those within `loss` of the best share the rate evenly.
    Otherwise the best one is selected, or uniformly one of several equal best ones. Off-policy estimates use these
    probabilities as exact weights. Raises ValueError if no expert may answer.
    """
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    is_best = utility == best
    if weights is None:
        within = (utility >= best - loss) & np.isfinite(utility) & ~is_best
        weights = within / np.maximum(within.sum(axis=-1, keepdims=True), 1)
    explored = np.where(is_best, 0.0, rate * weights)
    best_probability = (1.0 - explored.sum(axis=-1, keepdims=True)) / is_best.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(is_best, best_probability, explored))


MAX_CHARACTERS_PER_TOKEN = 8
"""No tokenizer exceeds this on real text, so a longer chat certainly does not fit into the context."""


def _local_remedy(rule: ExpertRule) -> str:
    """Return the end of an error message about a request for local experts."""
    source = f", or the API key {rule.key!r}" if rule.key else ""
    return (
        f"This is from the header x-coe-only-local, `rules` in experts.yaml{source}; a server of your own needs "
        "`local: true` in experts.yaml"
    )


def pinned_arm(chat: Chat, registry: Registry, recipe: str, rule: ExpertRule | None = None) -> str:
    """Return the expert or arm that the request demands, empty if it demands none.

    Raises ModelNotFound, Forbidden or InvalidRequest if it is unknown, excluded by the rule, or cannot take the chat.
    """
    if chat.model == AUTO:
        if recipe in ("", NO_RECIPE):
            return ""
        model = recipe
        check_recipe(recipe, registry, rule)
    else:
        model = chat.model
        check_model(model, registry, rule)
        if recipe not in ("", model) and not (recipe == NO_RECIPE and model in registry.expert_names):
            message = f"model {model!r} and x-coe-recipe {recipe!r} contradict each other: send model {AUTO!r}"
            raise InvalidRequest(message, param="x-coe-recipe")
    spec = registry.arm(model)
    if rule is not None and exclusion(rule, spec):
        permitted = ", ".join(permitted_models(registry, rule))
        raise Forbidden(
            f"{model!r} does not run locally, and only local experts may receive this request; request one of "
            f"{permitted}. {_local_remedy(rule)}",
            param="x-coe-recipe" if chat.model == AUTO else "model",
            code="expert_not_local",
        )
    if reason := ineligibility(chat, spec):
        raise InvalidRequest(f"{reason}{_remedy(chat, [spec])}", param="model", code="no_capable_expert")
    if isinstance(spec, ExpertSpec) and chat.api not in spec.supported_apis:
        check_thread(chat)  # the server of a translated expert stores none
    return model


def eligible_arms(
    chat: Chat,
    registry: Registry,
    utilities: Mapping[str, float],
    recipe: str,
    language: str,
    rule: ExpertRule | None,
    named: str,
    capable: Capable,
) -> Collection[str]:
    """Return the names of the eligible experts and arms; the one that is `named` needs no measured quality. Raises
    InvalidRequest if no expert can take the chat, Forbidden if the rule excludes all."""
    can_take = capable(chat, rule)
    eligible = [name for name in registry.expert_names if name in can_take]
    if not eligible or chat.api != "chat":
        eligible = _check_experts(chat, registry, rule, named, eligible)
    if recipe != NO_RECIPE:
        names = [arm.name for arm in registry.recipe_arms if arm.name in can_take]
        eligible += [name for name in names if name == named or utilities.get(name, -np.inf) > -np.inf]
    for need in sorted(chat.needs & OPTIONAL_CAPABILITIES):
        declaring = [name for name in eligible if need in registry.arm(name).capabilities]
        if declaring and need == "json_object":  # a schema can do as much
            declaring = [name for name in eligible if registry.arm(name).capabilities & {need, "json_schema"}]
        eligible = declaring or eligible
    if not registry.restricts_languages or language in ("", UNDETERMINED):
        return eligible
    spoken = {name: registry.arm(name).languages for name in eligible}
    return [name for name, languages in spoken.items() if languages is None or language in languages] or eligible


def _check_experts(chat: Chat, registry: Registry, rule: ExpertRule | None, named: str, able: list[str]) -> list[str]:
    """Return the names of the eligible experts; for embeddings only the `named` one. Raises InvalidRequest if none can
    take the chat, Forbidden if the rule excludes all."""
    permitted = [spec for spec in registry.experts if not exclusion(rule, spec)]
    if rule is not None and not permitted:
        if rule.only_local:
            message = f"only local experts may receive this request, and it may use none. {_local_remedy(rule)}"
            raise Forbidden(message, code="expert_not_local")
        message = f"no declared expert is in the list of the API key {rule.key!r}; change access.keys.experts"
        raise Forbidden(message, code="expert_not_permitted")
    if not able:
        reasons = "; ".join([ineligibility(chat, spec) for spec in permitted])
        experts = sorted(permitted, key=lambda expert: expert.name != registry.general_expert)
        message = f"no expert can take this request: {reasons}{_remedy(chat, experts)}"
        raise InvalidRequest(message, code="no_capable_expert")
    if chat.api == "embeddings" and len(able) > 1:
        if named in able:
            return [named]
        message = f"vectors of different models are not comparable: set model to one of {', '.join(able)}"
        raise InvalidRequest(message, param="model", code="ambiguous_model")
    if chat.api in TRANSLATED_APIS:  # an earlier answer may have stored state on one server
        for name in ("previous_response_id", "conversation"):
            if chat.fields.get(name):
                message = (
                    f"{name} is known to one expert only: write its name as model (the model of the earlier answer)"
                )
                raise InvalidRequest(message, param="model")
        check_thread(chat)
    return able


def _remedy(chat: Chat, specs: Sequence[ExpertSpec | ArmSpec]) -> str:
    """Return the model that a recipe's request could name instead, or the line of experts.yaml with which an expert
    could take a chat; empty if it lacks nothing that is declared."""
    if isinstance(arm := specs[0], ArmSpec):
        return f"; request {AUTO!r} or an expert, such as {arm.members[0].name!r}"
    if chat.api not in TEXT_APIS and not any(chat.api in spec.supported_apis for spec in specs):
        added = sorted(specs[0].supported_apis | {chat.api}) if len(specs) == 1 else [chat.api]
        return f". If an expert's server supports it, say so in experts.yaml: `apis: [{', '.join(added)}]`"
    for spec in specs:
        if isinstance(spec, ExpertSpec) and chat.needs - spec.capabilities - OPTIONAL_CAPABILITIES:
            needed = ", ".join(sorted(spec.capabilities | (chat.needs - OPTIONAL_CAPABILITIES)))
            return (
                f". If its model supports this, say so in experts.yaml: add `capabilities: [{needed}]` to the expert "
                f"{spec.name!r}{'' if len(specs) == 1 else ' or another'}"
            )
    if not any(_fits(chat, spec) for spec in specs):
        return ". Shorten the chat, or raise `context_length` of an expert in experts.yaml if its model takes more"
    return ""


def check_thread(chat: Chat) -> None:
    """Raise ThreadUnsupported for a Messages request whose conversation a server would store.

    Clients that know this error, Anthropic's SDKs among them, send the whole conversation instead.
    """
    if chat.api == "messages" and chat.fields.get("thread"):
        message = "thread is known to one expert only: send the whole conversation without it, or pin an expert"
        raise ThreadUnsupported(message, param="thread")


def check_model(model: str, registry: Registry, rule: ExpertRule | None = None, *, sent: str = "") -> None:
    """Raise ModelNotFound for a model that is not declared, or that the list of the API key excludes.

    Both have the same error, so that a key cannot discover what it may not use. The message quotes the name as the
    client `sent` it, such as an alias, and lists what the rule permits.
    """
    if model == AUTO or _exists(model, registry, rule):
        return
    what, known = f"the model {sent or model!r} does not exist here", ", ".join(permitted_models(registry, rule))
    if rule is not None and rule.experts is not None:
        message = f"{what}, or the API key {rule.key!r} may not use it; permitted: {known}"
        raise ModelNotFound(f"{message}. The operator can add it to access.keys.experts", param="model")
    raise ModelNotFound(
        f"{what}; known: {known}. For clients with a fixed model name, declare an alias in experts.yaml, such as "
        "aliases: {gpt-*: auto}",
        param="model",
    )


def _exists(model: str, registry: Registry, rule: ExpertRule | None) -> bool:
    """Return whether an expert or recipe is declared and not excluded by the list of the API key."""
    return model in registry.model_names and exclusion(rule, registry.arm(model)) != "key"


def check_recipe(recipe: str, registry: Registry, rule: ExpertRule | None = None) -> None:
    """Raise ModelNotFound for a value of x-coe-recipe that names no recipe, or one that the list of the API key
    excludes, with the same error. The message lists what the rule permits."""
    names = [one.name for one in registry.declared_recipes]
    if recipe not in names or not _exists(recipe, registry, rule):
        known = ", ".join((NO_RECIPE, *(name for name in names if permits_model(registry, rule, name))))
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


def ineligibility(chat: Chat, spec: ExpertSpec | ArmSpec) -> str:
    """Return why an expert or arm cannot take a chat; empty if it can."""
    if isinstance(spec, ArmSpec):
        if reason := single_expert_reason(chat):
            return f"{spec.name}: {reason}"
    elif chat.api not in spec.supported_apis and not (chat.api in TRANSLATED_APIS and "chat" in spec.supported_apis):
        return f"{spec.name} does not support the {chat.api} API"
    if missing := chat.needs - spec.capabilities - OPTIONAL_CAPABILITIES:
        return f"{spec.name} has no {', no '.join(sorted(missing))}"
    if _fits(chat, spec):
        return ""
    return f"{spec.name} has a context of {spec.context_length} tokens and the chat has {chat.characters} characters"


Capable = Callable[[Chat, ExpertRule | None], Collection[str]]
"""Returns the names of the experts and arms that can take a chat and that the rule permits."""
MAX_KINDS = 256
"""Kinds of requests whose capable arms are remembered. Capabilities, lengths of contexts and keys' rules make few."""


class CapableArms:
    """The experts and arms that can take a chat and that its rule permits, remembered for each kind of request."""

    def __init__(self, arms: Sequence[ExpertSpec | ArmSpec]) -> None:
        self._arms = arms
        self._lengths = [*sorted({arm.context_length * MAX_CHARACTERS_PER_TOKEN for arm in arms}), sys.maxsize]
        self._has_recipes = any(isinstance(arm, ArmSpec) for arm in arms)
        self._of_kind = lru_cache(maxsize=MAX_KINDS)(self._compute)

    def __call__(self, chat: Chat, rule: ExpertRule | None) -> frozenset[str]:
        longest = self._lengths[bisect_left(self._lengths, chat.characters)]  # chat of the same kind
        is_single = self._has_recipes and bool(single_expert_reason(chat))
        return self._of_kind(chat.api, chat.needs, longest, is_single, rule)

    def _compute(
        self, api: Api, needs: frozenset[Capability], characters: int, is_single: bool, rule: ExpertRule | None
    ) -> frozenset[str]:
        kind = Chat(AUTO, (), stream=False, needs=needs, characters=characters, fields={}, api=api)
        arms = [arm for arm in self._arms if not (is_single and isinstance(arm, ArmSpec)) and not exclusion(rule, arm)]
        return frozenset([arm.name for arm in arms if not ineligibility(kind, arm)])


def _fits(chat: Chat, spec: ExpertSpec | ArmSpec) -> bool:
    """Return whether a chat may fit into the context of an expert or arm."""
    return chat.characters <= spec.context_length * MAX_CHARACTERS_PER_TOKEN
