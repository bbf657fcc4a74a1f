"""Loads experts.yaml into a `Registry`, and checks names, addresses and memory across its sections.

Problems are lines `file:line: problem`, with the most similar known key. Checks of single values are part of the models
(`specs`, `sections`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from coe.core import GENERAL, PASS_THROUGH_APIS
from coe.errors import ConfigError
from coe.registry import yaml_source
from coe.registry.access import key_problems
from coe.registry.aliases import AUTO, alias_problems
from coe.registry.capabilities import ModelTable
from coe.registry.experts import ExpertSpec, address_problems
from coe.registry.hints import nearest, problems_of
from coe.registry.recipes import MIN_JUDGE_CONTEXT, PROPOSED_PREFIX, RecipeSpec, cap_problems
from coe.registry.residency import residency_problems, server_memory
from coe.registry.rules import rule_problems
from coe.registry.runtimes import LOCAL_RUNTIMES
from coe.registry.specs import Registry
from coe.registry.yaml_source import KeyPath, Problems, YamlSource

_RESERVED_RECIPE_NAMES = (AUTO, "off")
"""`off` is a value of the header x-coe-recipe."""
_PROPOSED_NAME = re.compile(rf"{PROPOSED_PREFIX}\d+")
"""Names of the recipes that `coe plan` proposes."""
_RESERVED_PARAMETERS = frozenset({"model", "messages", "stream"})


def load(path: Path, *, environ: Mapping[str, str]) -> Registry:
    """Read and validate a declaration. Raises ConfigError with all problems, each `file:line: problem`."""
    return _validated(*yaml_source.substitute_variables(yaml_source.read(path), environ))


def load_text(text: str, file: str, *, environ: Mapping[str, str]) -> Registry:
    """Validate a declaration that is not in a file yet; `file` is its name in problems. Raises as `load`."""
    return _validated(*yaml_source.substitute_variables(yaml_source.parse(text, file), environ))


def schema() -> dict[str, Any]:
    """Return the JSON schema of experts.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Registry.model_json_schema()


def _validated(source: YamlSource, problems: list[str]) -> Registry:
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.file}:1: expected the keys {', '.join(Registry.model_fields)}")
    try:  # a section whose keys are all commented out is null and gets its defaults
        declared = {key: item for key, item in source.value.items() if item is not None}
        registry = Registry.model_validate(declared, context=ModelTable())
    except ValidationError as error:
        problems += [f"{source.at(path)}: {problem}" for path, problem in problems_of(Registry, error.errors())]
        raise ConfigError(*problems) from None
    problems += [f"{source.at(path)}: {problem}" for path, problem in _cross_checks(source, registry)]
    if problems:
        raise ConfigError(*problems)
    return registry


def _cross_checks(source: YamlSource, registry: Registry) -> Problems:
    """Yield all problems of a declaration whose single values are valid."""
    yield from _duplicates(source, ("categories",), registry.category_names)
    yield from _duplicates(source, ("experts",), registry.expert_names)
    if GENERAL not in registry.category_names:
        yield ("categories",), f"a category named {GENERAL!r} is required, for uncertain requests"
    if registry.policy.cost_weight_limits[0] > registry.policy.cost_weight_limits[1]:
        yield ("policy", "cost_weight_limits"), "cost_weight_limits must be [lowest, highest]"
    for index, expert in enumerate(registry.experts):
        yield from ((("experts", index, *keys), problem) for keys, problem in _expert_problems(expert))
    yield from _assignment_problems(registry)
    yield from _recipe_problems(source, registry)
    yield from _alias_problems(registry)
    keys = registry.access.keys
    yield from _duplicates(source, ("access", "keys"), tuple(key.name for key in keys))
    yield from _duplicates(source, ("access", "keys"), tuple(key.sha256 for key in keys), field="sha256")
    yield from key_problems(registry)
    yield from _duplicates(source, ("rules",), tuple(rule.name for rule in registry.rules))
    yield from rule_problems(
        registry.rules,
        categories=registry.category_names,
        experts=registry.model_names,
        keys=tuple(name for key in keys for name in (key.name, key.tenant) if name),
        models=registry.models,
    )
    if registry.residency is None:
        yield from _memory_problems(registry)
    yield from residency_problems(registry)


def _alias_problems(registry: Registry) -> Problems:
    yield from alias_problems(registry.model_names, registry.aliases, registry.operating_points)
    for alias in registry.aliases:
        if _PROPOSED_NAME.fullmatch(alias):
            yield ("aliases", alias), f"the name {alias!r} is reserved for proposed recipes; choose another alias"


def _duplicates(source: YamlSource, section: KeyPath, names: tuple[str, ...], *, field: str = "name") -> Problems:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            earlier = source.at((*section, first[name], field)).rsplit(":", 1)[1]
            yield (*section, index, field), f"the {field} {name!r} is already used on line {earlier}"


def _assignment_problems(registry: Registry) -> Problems:
    for category, expert_name in registry.assignment.items():
        if category not in registry.category_names:
            yield (
                ("assignment", category),
                f"unknown category {category!r}{nearest(category, registry.category_names)}",
            )
        if expert_name not in registry.expert_names:
            where = ("assignment", category)
            yield where, f"unknown expert {expert_name!r}{nearest(expert_name, registry.expert_names)}"
    general = registry.general_expert
    if any(expert.name == general and "chat" not in expert.supported_apis for expert in registry.experts):
        is_assigned = GENERAL in registry.assignment
        place: KeyPath = ("assignment", GENERAL) if is_assigned else ("experts",)
        yield place, f"{general!r} answers {GENERAL!r}, so it must support the chat API"


def _expert_problems(expert: ExpertSpec) -> Problems:
    """Yield the problems of an expert, with keys relative to it."""
    if expert.name == AUTO:
        yield ("name",), f"the name {AUTO!r} is reserved; choose another name"
    yield from address_problems(expert)
    key = None if expert.api_key is None else expert.api_key.get_secret_value()
    if key is not None and (not key or not key.isprintable() or not key.isascii()):
        yield ("api_key",), f"the api_key of {expert.name!r} is empty or holds characters that are not printable"
    yield from _parameter_problems(expert.parameters)
    if expert.runtime == "litellm" and (beyond := sorted(expert.supported_apis & PASS_THROUGH_APIS)):
        message = f"{expert.name!r} has runtime litellm, which does not reach {', '.join(beyond)}; use runtime external"
        yield ("apis",), message


def _parameter_problems(parameters: Mapping[str, Any]) -> Problems:
    """Yield keys relative to the expert that has the parameters."""
    try:
        orjson.dumps(parameters)
    except orjson.JSONEncodeError as error:
        yield ("parameters",), f"parameters cannot be sent as JSON: {error}"
    if wrong := [name for name in parameters if name in _RESERVED_PARAMETERS]:
        yield ("parameters",), f"parameters may not set {', '.join(wrong)}; they come from the request"


def _recipe_problems(source: YamlSource, registry: Registry) -> Problems:
    names = tuple(str(index) if recipe is None else recipe.name for index, recipe in enumerate(registry.recipes))
    yield from _duplicates(source, ("recipes",), names)
    for index, recipe in enumerate(registry.recipes):
        if recipe is not None:
            found = (
                *_recipe_name_problems(recipe, registry),
                *_step_problems(recipe),
                *_member_problems(recipe, registry),
                *cap_problems(recipe, {name: registry.expert(name) for name in registry.expert_names}),
            )
            yield from ((("recipes", index, *keys), problem) for keys, problem in found)


def _recipe_name_problems(recipe: RecipeSpec, registry: Registry) -> Problems:
    """Yield the problems of a recipe's name, with keys relative to the recipe."""
    name, taken = recipe.name, {"an expert": registry.expert_names, "a category": registry.category_names}
    for kind, names in taken.items():
        if name in names:
            yield ("name",), f"{name!r} is {kind} already; choose another name for the recipe"
    if name in _RESERVED_RECIPE_NAMES or _PROPOSED_NAME.fullmatch(name):
        yield ("name",), f"the name {name!r} is reserved; choose another name for the recipe"


def _step_problems(recipe: RecipeSpec) -> Problems:
    """Check the keys that declare the steps, relative to the recipe."""
    name, kinds = recipe.name, _kinds(recipe)
    if len(kinds) != 1:
        said = f" and has {', '.join(kinds)}" if kinds else ""
        yield (), f"recipe {name!r} needs one of `cascade`, `vote`, `chain` and `fuse`, a list of experts{said}"
        return
    (kind,) = kinds
    if kind != "vote" and "ask" in recipe.model_fields_set:
        yield ("ask",), f"`ask` is for a vote; {name!r} is a {kind}, which calls its steps one after another"
    if recipe.writes:
        yield from _writing_problems(recipe, kind)
        return
    if len(recipe.members) < 2:
        yield (kind,), f"recipe {name!r} needs two members; add one, or pin the expert"
    for key in ("by", "instruction"):
        if getattr(recipe, key) is not None:
            yield (key,), f"`{key}` is for chains and fuses, and {name!r} is a {kind}; remove it, or use `fuse`"
    yield from _judge_problems(recipe)
    if recipe.max_loss is not None and len(recipe.steps) == 1:
        yield ("max_loss",), f"{name!r} calls all members at once, so it stops no earlier; remove max_loss"


def _judge_problems(recipe: RecipeSpec) -> Problems:
    """Check the keys of a judge, relative to a cascade or vote."""
    name, judge = recipe.name, recipe.judge
    if judge is not None and recipe.signal != "judge":
        yield ("judge",), f"{name!r} names a judge and its signal is {recipe.signal!r}; write signal: judge"
    elif recipe.signal == "judge" and judge is None:
        yield ("signal",), f"{name!r} needs `judge`: the expert that grades the answers"
    elif judge is not None and recipe.vote:
        yield ("signal",), f"a judge is for a cascade; {name!r} is a vote, which goes by agreement"
    elif judge is not None and len(recipe.steps) == 1:
        yield ("signal",), f"{name!r} has one step, so there is no answer to judge before the last; remove `signal`"
    if judge in recipe.members:
        yield ("judge",), f"{judge!r} is a member, and a member cannot also be the judge; use another expert"


def _writing_problems(recipe: RecipeSpec, kind: str) -> Problems:
    """Check the keys of a chain or fuse, relative to the recipe."""
    name = recipe.name
    for key in ("signal", "judge", "max_tokens", "tools", "max_loss"):
        if key in recipe.model_fields_set:
            yield (key,), f"{name!r} is a {kind}, which always calls all members, so `{key}` has no effect; remove it"
    if recipe.chain and recipe.by is not None:
        yield ("by",), f"`by` is for a fuse; {name!r} is a chain, whose last member writes the answer"
    if recipe.fuse and recipe.by is None:
        yield ("fuse",), f"{name!r} needs `by`: the expert that writes the answer from those of the others"
    if len(getattr(recipe, kind)) < 2:
        remedy = "add the one that revises its draft" if recipe.chain else "add one, or use `chain: [it, by]`"
        yield (kind,), f"{name!r} has one expert in `{kind}`; {remedy}"


def _kinds(recipe: RecipeSpec) -> list[str]:
    return [kind for kind in ("cascade", "vote", "chain", "fuse") if getattr(recipe, kind)]


def _placed_members(recipe: RecipeSpec, key: str) -> list[tuple[KeyPath, str]]:
    """Return each member, and the judge, with its key path relative to the recipe."""
    placed: list[tuple[KeyPath, str]] = []
    for index, step in enumerate(getattr(recipe, key)):
        placed += (
            [((key, index), step)] if isinstance(step, str) else (((key, index, n), m) for n, m in enumerate(step))
        )
    named = {"by": recipe.by, "judge": recipe.judge}
    return [*placed, *(((key,), name) for key, name in named.items() if name is not None)]


def _member_problems(recipe: RecipeSpec, registry: Registry) -> Problems:
    """Check the members, with keys relative to the recipe."""
    if len(kinds := _kinds(recipe)) != 1:
        return
    (key,) = kinds
    recipes = {one.name for one in registry.declared_recipes}
    seen = set[str]()
    for where, member in _placed_members(recipe, key):
        if member in seen and not recipe.chain and where not in (("by",), ("judge",)):
            yield where, f"{member!r} is a member already; each member is called once, so remove one of them"
        elif member in registry.expert_names:
            if "chat" not in registry.expert(member).supported_apis:
                yield where, f"{member!r} does not support the chat API, which all members need; use another expert"
            if where == ("judge",) and registry.expert(member).context_length < MIN_JUDGE_CONTEXT:
                too_small = f"{member!r} has a context of {registry.expert(member).context_length} tokens"
                yield where, f"{too_small}, and a judge's request needs {MIN_JUDGE_CONTEXT}; use another expert"
            if recipe.tools == "agreement" and "tools" not in registry.expert(member).capabilities:
                yield where, f"{member!r} has no tools; add `tools` to its capabilities, or remove `tools: agreement`"
        elif member in recipes:
            circle = "a recipe cannot contain itself" if member == recipe.name else f"{member!r} is a recipe"
            yield where, f"{circle}; the members are experts: {', '.join(registry.expert_names)}"
        else:
            yield where, f"unknown expert {member!r}{nearest(member, registry.expert_names)}"
        seen.add(member)
    yield from _language_problems(recipe, registry, key)
    if len(recipe.called) > registry.policy.max_calls:
        calls = "makes" if recipe.writes else "may make"
        yield (
            (key,),
            f"recipe {recipe.name!r} {calls} {len(recipe.called)} calls and policy.max_calls allows "
            f"{registry.policy.max_calls}; remove members or raise it",
        )


def _language_problems(recipe: RecipeSpec, registry: Registry, key: str) -> Problems:
    """Check that the members have a language in common. An expert that declares none has all."""
    spoken = [registry.expert(member).languages for member in recipe.members if member in registry.expert_names]
    restricted = [languages for languages in spoken if languages is not None]
    if restricted and not frozenset.intersection(*restricted):
        remedy = "add one to their `languages`, or use other members"
        yield (key,), f"the members of {recipe.name!r} have no language in common; {remedy}"


def _memory_problems(registry: Registry) -> Problems:
    """Check the budget for memory. Experts of one model share a process, whose memory counts once."""
    servers = server_memory(expert for expert in registry.experts if expert.runtime in LOCAL_RUNTIMES)
    needed, allowed = sum(servers.values()), registry.budget.memory_gb
    if allowed is not None and needed > allowed:
        yield (
            ("budget", "memory_gb"),
            f"the local experts need {needed:g} GB together and memory_gb allows {allowed:g}; raise it, or declare "
            "`residency` to share the memory",
        )
