"""Selects the labelled prompts that a router is trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from coe.errors import ConfigError, DataError
from coe.learning.evaluation.tables import read_prompts
from coe.registry import Registry

LabelledPrompts = list[tuple[str, str]]


def training_pairs(registry: Registry, *, base: Path, data: Path | None) -> LabelledPrompts:
    """The labelled prompts for the declared categories: the file given or declared or shipped, and declared examples.

    Raises DataError for a category that only one side knows; shipped prompts of undeclared categories are left out.
    """
    import routers

    if data is None and registry.router.training_data:
        data = base / registry.router.training_data
    if data is not None:
        pairs = read_prompts(data)
        if unknown := sorted({category for _, category in pairs} - set(registry.category_names)):
            raise DataError(f"{data}: categories that experts.yaml does not declare: {', '.join(unknown)}")
    else:
        kept = (one for one in routers.starter_examples() if one.category in registry.category_names)
        pairs = [(one.prompt, one.category) for one in kept]
    pairs += [(example, category.name) for category in registry.categories for example in category.examples]
    counts = Counter(category for _, category in pairs)
    if bare := [name for name in registry.category_names if not counts[name]]:
        raise ConfigError(f"no training prompts for: {', '.join(bare)}; add examples to them in experts.yaml")
    return pairs
