"""Which experts and arms can take a chat, and why the others cannot. Pure, like `coe.routing.decision`, which calls it.

A request may pin an expert or recipe. All others go to the experts that support its API, have the capabilities that it
needs and enough context, and speak its language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coe.core import NO_RECIPE, OPTIONAL_CAPABILITIES, TEXT_APIS, UNDETERMINED, Capability, Chat
from coe.errors import InvalidRequest, ModelNotFound, ThreadUnsupported
from coe.experts.variants import contradiction
from coe.registry import AUTO, ArmSpec, ExpertSpec, ExpertVariant, Registry

MAX_CHARACTERS_PER_TOKEN = 8
"""No tokenizer exceeds this on real text, so a longer chat certainly does not fit into the context."""
_TRANSLATED_APIS = frozenset({"responses", "messages"})
"""APIs that are translated for an expert with chat only."""


def pinned_arm(chat: Chat, registry: Registry, recipe: str) -> str:
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
    if isinstance(spec, ExpertSpec) and chat.api not in spec.supported_apis:
        _check_thread(chat)  # the server of a translated expert stores none
    return pinned


def eligible_arms(
    chat: Chat, registry: Registry, utilities: Mapping[str, float], recipe: str, *, language: str
) -> list[str]:
    """Return the names of the eligible experts and arms. Raises InvalidRequest if no expert can take the chat."""
    eligible = _eligible_experts(chat, registry)
    if registry.recipe_arms and recipe != NO_RECIPE:
        eligible += _eligible_recipes(chat, registry, utilities)
    if chat.needs:
        eligible = _with_optional_capabilities(eligible, chat, registry)
    return _with_language(eligible, language, registry) if registry.restricts_languages else eligible


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
    if chat.api in _TRANSLATED_APIS:
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


def _with_language(eligible: list[str], language: str, registry: Registry) -> list[str]:
    """Return those of the eligible that speak the language; all if none does or it is not identified."""
    if language in ("", UNDETERMINED):
        return eligible
    declared = {name: registry.arm(name).languages for name in eligible}
    speaking = [name for name, languages in declared.items() if languages is None or language in languages]
    return speaking or eligible


def _remedy(chat: Chat, specs: Sequence[ExpertSpec | ArmSpec]) -> str:
    """Return the line of experts.yaml with which an expert could take a chat; empty if it lacks nothing that is
    declared."""
    if chat.api not in TEXT_APIS and not any(chat.api in spec.supported_apis for spec in specs):
        added = sorted(specs[0].supported_apis | {chat.api}) if len(specs) == 1 else [chat.api]
        return f". If an expert's server supports it, say so in experts.yaml: `apis: [{', '.join(added)}]`"
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
    _check_thread(chat)


def _check_thread(chat: Chat) -> None:
    """Raise InvalidRequest for a Messages request whose conversation a server would store.

    Clients that know this error, Anthropic's SDKs among them, send the whole conversation instead.
    """
    if chat.api == "messages" and chat.fields.get("thread"):
        message = "thread is known to one expert only: send the whole conversation without it, or pin an expert"
        raise ThreadUnsupported(message, param="thread")


def _eligible_recipes(chat: Chat, registry: Registry, utilities: Mapping[str, float]) -> list[str]:
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
