"""Loads experts.yaml into a `Registry`, and checks names, addresses and memory across its sections.

Problems are lines `file:line: problem`, with the most similar known key. Checks of single values are part of the models
(`specs`, `sections`).

Checks `residency` in experts.yaml: the devices, the experts' residency keys, and whether the experts fit.

Checks of API keys against the rest of experts.yaml: tenants, and the experts that each key may use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from coe.core import GENERAL, PASS_THROUGH_APIS
from coe.errors import ConfigError
from coe.registry import yaml_source
from coe.registry.experts import ExpertSpec, ServerKey
from coe.registry.recipes import MIN_JUDGE_CONTEXT, PROPOSED_PREFIX, RecipeSpec
from coe.registry.rules import condition_problems
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES, ModelTable
from coe.registry.sections import AUTO, ResidencySpec, matches
from coe.registry.specs import Registry
from coe.registry.yaml_source import KeyPath, Problems, YamlSource, nearest, problems_of

_RESIDENCY_KEYS = ("device", "pinned", "sleep_level", "stand_in")
"""Keys of an expert that need the section `residency`."""


def residency_problems(registry: Registry) -> Problems:
    """Check the residency keys of every expert; if they are right, check that the experts fit on their devices, or
    without residency into `budget.memory_gb`."""
    residency, wrong = registry.residency, False
    gpus = set[int]()
    for index, device in enumerate(residency.devices if residency else ()):
        if (twice := gpus.intersection(device.gpus)) or len(set(device.gpus)) < len(device.gpus):
            named = ", ".join(map(str, sorted(twice or device.gpus)))
            yield ("residency", "devices", index, "gpus"), f"GPU {named} is named twice; name it once"
        gpus.update(device.gpus)
    first: dict[ServerKey, ExpertSpec] = {}
    for index, expert in enumerate(registry.experts):
        if (found := _residency_problem(expert, first.setdefault(expert.server_key, expert), registry)) is not None:
            wrong = True
            yield ("experts", index, found[0]), f"{expert.name!r}: {found[1]}"
    if residency is None:
        needed, allowed = sum(server_memory(registry.experts).values()), registry.budget.memory_gb
        if allowed is not None and needed > allowed:
            what = (
                f"the local experts need {needed:g} GB together and memory_gb allows {allowed:g}; raise it, or declare"
            )
            yield ("budget", "memory_gb"), f"{what} `residency` to share the memory"
    if residency is None or wrong:
        return
    if residency.wait_timeout < residency.max_wait:
        yield (
            ("residency", "wait_timeout"),
            f"wait_timeout must be at least max_wait ({residency.max_wait:g}), or requests expire too soon",
        )
    yield from _device_memory_problems(registry, residency)


def _residency_problem(expert: ExpertSpec, sharing: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """Return the wrong key of an expert and the problem. `sharing` is the first expert on the same server."""
    local, residency = expert.runtime in LOCAL_RUNTIMES, registry.residency
    used = next((key for key in _RESIDENCY_KEYS if getattr(expert, key)), None)
    if used and (residency is None or (not local and used != "stand_in")):
        return used, f"`{used}` is for local experts that share devices; declare `residency` with its devices"
    if residency is None:
        return None
    if expert.stand_in and (expert.stand_in == expert.name or expert.stand_in not in registry.expert_names):
        known = ", ".join(registry.expert_names)
        return "stand_in", f"the stand-in {expert.stand_in!r} is not another expert; known: {known}"
    if not local:
        return None
    devices = {device.name: device for device in residency.devices}
    home, levels = registry.device_of(expert), RUNTIMES[expert.runtime].sleep_levels
    if (expert.device is None and len(devices) > 1) or home not in devices:
        return "device", f"name its device, one of {', '.join(devices)}"
    if expert.gpus and devices[home].gpus:
        return "gpus", "its device declares `gpus`; leave them out here"
    if home != registry.device_of(sharing):
        return "device", f"it shares the server of {sharing.name!r}, which is on another device; name the same device"
    if expert.replicas > 1:
        return "replicas", "an expert that shares a device has one server; leave out `replicas` or `residency`"
    if expert.memory_gb is None:
        return "name", "an expert that shares a device needs memory_gb: the memory of its server while awake"
    if expert.sleep_level and expert.sleep_level not in levels:
        remedy = f"write {', '.join(map(str, sorted(levels)))}" if levels else "remove it: they are stopped instead"
        return "sleep_level", f"{expert.runtime} servers cannot sleep at level {expert.sleep_level}; {remedy}"
    return None


def _device_memory_problems(registry: Registry, residency: ResidencySpec) -> Problems:
    """Check that each device can hold its pinned experts and, at the same time, any other one."""
    for index, device in enumerate(residency.devices):
        here = [expert for expert in registry.experts if registry.device_of(expert) == device.name]
        memory, pinned = server_memory(here), {expert.server_key for expert in here if expert.pinned}
        free = device.memory_gb - sum(memory[key] for key in pinned)
        others = [(memory[expert.server_key], expert.name) for expert in here if expert.server_key not in pinned]
        largest, name = max(others, default=(0.0, ""))
        if free < max(largest, 0.0):
            needed = f", and {name!r} needs {largest:g}" if name else ""
            yield (
                ("residency", "devices", index, "memory_gb"),
                f"the pinned experts leave {free:g} of {device.memory_gb:g} GB of {device.name!r}{needed}; pin fewer, "
                "give the device more, or that expert a smaller or quantised model",
            )


def server_memory(experts: Iterable[ExpertSpec]) -> dict[ServerKey, float]:
    """Return the GB of each local server, which its experts share."""
    memory: dict[ServerKey, float] = {}
    for expert in (one for one in experts if one.runtime in LOCAL_RUNTIMES):
        memory[expert.server_key] = max(memory.get(expert.server_key, 0.0), expert.memory_gb or 0.0)
    return memory


def key_problems(registry: Registry) -> Problems:
    """Yield the problems of all keys but duplicates."""
    keys, recipes = registry.access.keys, {recipe.name for recipe in registry.declared_recipes}
    tenants = {key.tenant for key in keys}
    for index, key in enumerate(keys):
        where = ("access", "keys", index)
        if key.tenant is None and key.name in tenants:
            problem = f"the key {key.name!r} would share the tenant {key.name!r} of other keys; declare its tenant"
            yield (*where, "name"), problem
        named = list[ExpertSpec]()
        for number, pattern in enumerate(("*",) if key.experts is None else key.experts):
            found = [spec for spec in registry.experts if matches(pattern, spec.name)]
            named += found
            if pattern in recipes:
                remedy = "name its members, which permits the recipe too"
                yield (*where, "experts", number), f"{pattern!r} is a recipe; {remedy}"
            elif not found:
                what = f"unknown expert {pattern!r}{nearest(pattern, registry.expert_names)}"
                yield (*where, "experts", number), what
        if key.only_local and named and not any(spec.is_local for spec in named):
            problem = f"the key {key.name!r} may use no expert that runs locally, so all its requests would fail"
            remedy = "declare `local: true` for a server of your own, or remove only_local"
            yield (*where, "only_local"), f"{problem}; {remedy}"


_RESERVED_RECIPE_NAMES = (AUTO, "off")
"""`off` is a value of the header x-coe-recipe."""
_PROPOSED_NAME = re.compile(rf"{PROPOSED_PREFIX}\d+")
"""Names of the recipes that `coe plan` proposes."""
_RESERVED_PARAMETERS = frozenset({"model", "messages", "stream"})
_Reference = tuple[KeyPath, str, str | None, Sequence[str]]
"""A key path, the kind of what its value names, the value, and the declared names."""


def load(path: Path, *, environ: Mapping[str, str]) -> Registry:
    """Read and validate a declaration. Raises ConfigError with all problems, each `file:line: problem`."""
    return _validated(yaml_source.read(path, environ=environ))


def load_text(text: str, file: str, *, environ: Mapping[str, str]) -> Registry:
    """Validate a declaration that is not in a file yet; `file` is its name in problems. Raises as `load`."""
    return _validated(yaml_source.parse(text, file, environ=environ))


def schema() -> dict[str, Any]:
    """Return the JSON schema of experts.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Registry.model_json_schema()


def _validated(source: YamlSource) -> Registry:
    problems = list(source.unset)
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
    categories, experts, keys = registry.category_names, registry.expert_names, registry.access.keys
    recipes = [str(index) if recipe is None else recipe.name for index, recipe in enumerate(registry.recipes)]
    unique: list[tuple[KeyPath, str, Sequence[str]]] = [
        (("categories",), "name", categories),
        (("experts",), "name", experts),
        (("recipes",), "name", recipes),
        (("access", "keys"), "name", [key.name for key in keys]),
        (("access", "keys"), "sha256", [key.sha256 for key in keys]),
        (("rules",), "name", [rule.name for rule in registry.rules]),
        (
            ("residency", "devices"),
            "name",
            [one.name for one in registry.residency.devices] if registry.residency else (),
        ),
    ]
    for section, field, values in unique:
        first: dict[str, int] = {}
        for index, value in enumerate(values):
            if first.setdefault(value, index) != index:
                earlier = source.at((*section, first[value], field)).rsplit(":", 1)[1]
                yield (*section, index, field), f"the {field} {value!r} is already used on line {earlier}"
    references: list[_Reference] = [
        *((("assignment", category), "category", category, categories) for category in registry.assignment),
        *((("assignment", category), "expert", name, experts) for category, name in registry.assignment.items()),
        *_rule_references(registry),
    ]
    for path, kind, name, known in references:
        if name is not None and name not in known:
            yield path, f"unknown {kind} {name!r}{nearest(name, known)}"
    if GENERAL not in categories:
        yield ("categories",), f"a category named {GENERAL!r} is required, for uncertain requests"
    if registry.policy.cost_weight_limits[0] > registry.policy.cost_weight_limits[1]:
        yield ("policy", "cost_weight_limits"), "cost_weight_limits must be [lowest, highest]"
    general = registry.general_expert
    if general in experts and "chat" not in registry.expert(general).supported_apis:
        place: KeyPath = ("assignment", GENERAL) if GENERAL in registry.assignment else ("experts",)
        yield place, f"{general!r} answers {GENERAL!r}, so it must support the chat API"
    for index, expert in enumerate(registry.experts):
        yield from ((("experts", index, *path), problem) for path, problem in _expert_problems(expert))
    for index, recipe in enumerate(registry.recipes):
        if recipe is not None:
            yield from ((("recipes", index, *path), problem) for path, problem in _recipe_problems(recipe, registry))
    yield from ((("aliases", name), problem) for name, problem in _alias_problems(registry))
    yield from key_problems(registry)
    for index, rule in enumerate(registry.rules):
        for condition, problem in condition_problems(rule, registry.models):
            yield ("rules", index, "when", condition), problem
    yield from residency_problems(registry)


def _rule_references(registry: Registry) -> Iterator[_Reference]:
    """Yield the names in rules, without patterns."""
    keys = [name for key in registry.access.keys for name in (key.name, key.tenant) if name]
    for index, rule in enumerate(registry.rules):
        where = ("rules", index)
        yield (*where, "expert"), "expert or recipe", rule.expert, registry.model_names
        yield (*where, "category"), "category", rule.category, registry.category_names
        yield from (((*where, "odds", name), "category", name, registry.category_names) for name in rule.odds or ())
        for name in (one for one in rule.when.key or () if "*" not in one):
            yield (*where, "when", "key"), "API key or tenant (keys issued later need a pattern)", name, keys


def _alias_problems(registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield aliases and what is wrong with them."""
    models, aliases = registry.models.fixed, registry.aliases
    for name, target in aliases.items():
        if name in models:
            yield name, f"{name!r} is a model already, which an alias cannot replace; remove the alias"
        if _PROPOSED_NAME.fullmatch(name):
            yield name, f"the name {name!r} is reserved for proposed recipes; choose another alias"
        if target in aliases and target not in models:
            yield name, f"the target {target!r} is an alias itself; aliases do not chain, write a model"
        elif target not in models:
            yield name, f"unknown model {target!r}{nearest(target, models)}"


def _expert_problems(expert: ExpertSpec) -> Problems:
    """Yield the problems of an expert, with keys relative to it."""
    name, runtime, local = expert.name, expert.runtime, expert.runtime in LOCAL_RUNTIMES
    if name == AUTO or _PROPOSED_NAME.fullmatch(name):
        yield ("name",), f"the name {name!r} is reserved; choose another name"
    if expert.base_url and expert.base_urls:
        yield ("base_urls",), "write base_url for one server or base_urls for several, not both"
    elif runtime == "external" and not expert.addresses:
        yield (), f"expert {name!r} is external, so it needs a base_url"
    elif local and (expert.base_url or expert.base_urls):
        where = "base_url" if expert.base_url else "base_urls"
        yield (where,), f"{name!r} is a local expert and gets its own address; use runtime: external instead"
    elif runtime == "litellm" and len(expert.addresses) > 1:
        yield ("base_urls",), "an expert of runtime litellm has one base_url at most"
    if not local and expert.replicas > 1:
        yield ("replicas",), f"{name!r} is not a local expert; list its replicas in base_urls"
    if expert.local and runtime != "external":
        remedy = "which is local anyway" if local else "of a provider"
        yield ("local",), f"`local` is for runtime external; {name!r} has runtime {runtime}, {remedy}; remove it"
    key = None if expert.api_key is None else expert.api_key.get_secret_value()
    if key is not None and (not key or not key.isprintable() or not key.isascii()):
        yield ("api_key",), f"the api_key of {name!r} is empty or holds characters that are not printable"
    try:
        orjson.dumps(expert.parameters)
    except orjson.JSONEncodeError as error:
        yield ("parameters",), f"parameters cannot be sent as JSON: {error}"
    if wrong := [field for field in expert.parameters if field in _RESERVED_PARAMETERS]:
        yield ("parameters",), f"parameters may not set {', '.join(wrong)}; they come from the request"
    if runtime == "litellm" and (beyond := sorted(expert.supported_apis & PASS_THROUGH_APIS)):
        what = f"{name!r} has runtime litellm, which does not reach {', '.join(beyond)}"
        yield ("apis",), f"{what}; use runtime external"


_RECIPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "cascade": ("signal", "judge", "max_loss"),
    "vote": ("ask", "max_loss"),
    "chain": ("instruction",),
    "fuse": ("by", "instruction"),
}
"""The kinds of recipes, and the further keys that each may have."""


def _recipe_problems(recipe: RecipeSpec, registry: Registry) -> Problems:
    """Yield the problems of a recipe, with keys relative to it."""
    name, kinds = recipe.name, [kind for kind in _RECIPE_KEYS if getattr(recipe, kind)]
    for what, names in {"an expert": registry.expert_names, "a category": registry.category_names}.items():
        if name in names:
            yield ("name",), f"{name!r} is {what} already; choose another name for the recipe"
    if name in _RESERVED_RECIPE_NAMES or _PROPOSED_NAME.fullmatch(name):
        yield ("name",), f"the name {name!r} is reserved; choose another name for the recipe"
    if len(kinds) != 1:
        said = f" and has {', '.join(kinds)}" if kinds else ""
        yield (), f"recipe {name!r} needs one of `cascade`, `vote`, `chain` and `fuse`, a list of experts{said}"
        return
    for key in RecipeSpec.model_fields:
        users = [f"a {kind}" for kind, keys in _RECIPE_KEYS.items() if key in keys]
        if users and key in recipe.model_fields_set and f"a {kinds[0]}" not in users:
            yield (key,), f"`{key}` is for {' or '.join(users)}, and {name!r} is a {kinds[0]}; remove it"
    if len(recipe.members) < 2:
        yield (kinds[0],), f"recipe {name!r} needs two members; add one, or pin the expert"
    if recipe.fuse and recipe.by is None:
        yield ("fuse",), f"{name!r} needs `by`: the expert that writes the answer from those of the others"
    if recipe.cascade and (recipe.judge is None) == (recipe.signal == "judge"):
        yield ("signal",), f"{name!r} needs `signal: judge` and `judge`, the expert that grades the answers, or neither"
    for key in ("judge", "max_loss"):
        if getattr(recipe, key) and len(recipe.steps) == 1:
            yield (key,), f"{name!r} has one step, so `{key}` has no effect; remove it"
    yield from _member_problems(recipe, kinds[0], registry)


def _member_problems(recipe: RecipeSpec, kind: str, registry: Registry) -> Problems:
    """Check the members and the judge, with keys relative to the recipe."""
    placed: list[tuple[KeyPath, str]] = []
    for index, step in enumerate(getattr(recipe, kind)):
        members = [step] if isinstance(step, str) else step
        placed += [((kind, index, number), member) for number, member in enumerate(members)]
    placed += [((key,), name) for key, name in (("by", recipe.by), ("judge", recipe.judge)) if name is not None]
    recipes = {one.name for one in registry.declared_recipes}
    seen = set[str]()
    for where, member in placed:
        if member in seen and not recipe.chain and where != ("by",):
            yield where, f"{member!r} is a member already; each is called once, and none is the judge; remove one"
        elif member in registry.expert_names:
            yield from ((where, problem) for problem in _unable(registry.expert(member), where == ("judge",)))
        elif member in recipes:
            circle = "a recipe cannot contain itself" if member == recipe.name else f"{member!r} is a recipe"
            yield where, f"{circle}; the members are experts: {', '.join(registry.expert_names)}"
        else:
            yield where, f"unknown expert {member!r}{nearest(member, registry.expert_names)}"
        seen.add(member)
    known = [registry.expert(member) for member in recipe.members if member in registry.expert_names]
    restricted = [expert.languages for expert in known if expert.languages is not None]
    if restricted and not frozenset.intersection(*restricted):
        remedy = "add one to their `languages`, or use other members"
        yield (kind,), f"the members of {recipe.name!r} have no language in common; {remedy}"
    if (calls := len(recipe.called)) > (allowed := registry.policy.max_calls):
        makes = f"recipe {recipe.name!r} makes up to {calls} calls and policy.max_calls allows {allowed}"
        yield (kind,), f"{makes}; remove members or raise it"


def _unable(expert: ExpertSpec, judges: bool) -> Iterator[str]:
    """Yield why an expert cannot be a member of a recipe, or its judge."""
    if "chat" not in expert.supported_apis:
        yield f"{expert.name!r} does not support the chat API, which all members need; use another expert"
    if judges and expert.context_length < MIN_JUDGE_CONTEXT:
        too_small = f"{expert.name!r} has a context of {expert.context_length} tokens"
        yield f"{too_small}, and a judge's request needs {MIN_JUDGE_CONTEXT}; use another expert"
