"""Checks of API keys against the rest of experts.yaml: tenants, and the experts that each key may use."""

from __future__ import annotations

from coe.registry.aliases import matches
from coe.registry.experts import ExpertSpec
from coe.registry.hints import nearest
from coe.registry.specs import Registry
from coe.registry.yaml_source import Problems


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
