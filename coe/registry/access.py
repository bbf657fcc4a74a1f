"""Checks of API keys against the rest of experts.yaml: tenants, and the experts that each key may use."""

from __future__ import annotations

from coe.registry.aliases import matches
from coe.registry.experts import ExpertSpec
from coe.registry.hints import nearest
from coe.registry.sections import ApiKey
from coe.registry.specs import Registry
from coe.registry.yaml_source import Problems


def key_problems(registry: Registry) -> Problems:
    """Yield the problems of all keys but duplicates."""
    keys = registry.access.keys
    declared_tenants = {key.tenant for key in keys}
    for index, key in enumerate(keys):
        where = ("access", "keys", index)
        if key.tenant is None and key.name in declared_tenants:
            problem = f"the key {key.name!r} would share the tenant {key.name!r} of other keys; declare its tenant"
            yield (*where, "name"), problem
        found = _expert_problems(key, registry)
        yield from (((*where, *path), problem) for path, problem in found)


def _expert_problems(key: ApiKey, registry: Registry) -> Problems:
    """Check the experts of a key, with key paths relative to it."""
    patterns = ("*",) if key.experts is None else key.experts
    recipes = {recipe.name for recipe in registry.declared_recipes}
    named = list[ExpertSpec]()
    for index, pattern in enumerate(patterns):
        found = [spec for spec in registry.experts if matches(pattern, spec.name)]
        named += found
        if pattern in recipes:
            yield ("experts", index), f"{pattern!r} is a recipe; name its members, which permits the recipe too"
        elif not found:
            what = "no expert matches" if "*" in pattern else "unknown expert"
            yield ("experts", index), f"{what} {pattern!r}{nearest(pattern, registry.expert_names)}"
    if key.only_local and named and not any(spec.is_local for spec in named):
        yield (
            ("only_local",),
            f"the key {key.name!r} may use no expert that runs locally, so all its requests would fail; declare "
            "`local: true` for a server of your own, or remove only_local",
        )
