"""Selects the labelled prompts that a router is trained on, and trains it (`coe train`, `coe retrain`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from coe.errors import ConfigError, DataError
from coe.foreground import progress_bar
from coe.measuring.tables import numbered_prompts
from coe.registry import Registry
from coe.terminal import print_error

MIN_PROMPTS = 2
"""Prompts that training needs of each category."""


def training_pairs(registry: Registry, *, base: Path, data: Path | None) -> list[tuple[str, str]]:
    """(prompt, category) pairs of the declared categories: a file's or the shipped ones, extra and declared examples.

    The file is `data`, or router.training_data relative to `base`; the extra ones are those of
    router.extra_training_data. Raises DataError for a category in a file that experts.yaml does not declare, and
    ConfigError for a category with too few prompts.
    """
    pairs = _pairs(registry, base=base, data=data)
    if problems := _problems(registry, pairs):
        raise ConfigError(*problems.values())
    return pairs


def training_problems(registry: Registry, *, base: Path) -> dict[int, str]:
    """Return the index of each category that training would refuse, and why. Raises DataError as `training_pairs`."""
    return _problems(registry, _pairs(registry, base=base, data=None))


def _problems(registry: Registry, pairs: Sequence[tuple[str, str]]) -> dict[int, str]:
    counts = Counter(category for _, category in set(pairs))
    file = registry.router.training_data or "a file of `router.training_data`"
    return {
        index: f"category {name!r} has {counts[name]} training prompts and needs {MIN_PROMPTS}; "
        f"add `examples` to it, or prompts to {file}"
        for index, name in enumerate(registry.category_names)
        if counts[name] < MIN_PROMPTS
    }


def _pairs(registry: Registry, *, base: Path, data: Path | None) -> list[tuple[str, str]]:
    import routers

    if data is None and registry.router.training_data:
        data = base / registry.router.training_data
    if data is not None:
        pairs = [(prompt, category) for _, prompt, category in numbered_prompts(data)]
        if unknown := sorted({category for _, category in pairs} - set(registry.category_names)):
            raise DataError(f"{data}: categories that experts.yaml does not declare: {', '.join(unknown)}")
    else:
        pairs = [
            (one.prompt, one.category) for one in routers.starter_examples() if one.category in registry.category_names
        ]
    if extra := registry.router.extra_training_data:
        pairs = add_prompts(pairs, base / extra, categories=registry.category_names)
    return pairs + [(example, category.name) for category in registry.categories for example in category.examples]


def add_prompts(pairs: Sequence[tuple[str, str]], path: Path, *, categories: Collection[str]) -> list[tuple[str, str]]:
    """Add the prompts of a file to (prompt, category) pairs. Raises DataError for a category that is not declared.

    A prompt that is already in the pairs is not added again; if the file gives another category, that one replaces it.
    Prompts with several categories within the file are left out, and their number is printed.
    """
    from routers.examples import normalize_prompt

    found: dict[str, set[str]] = {}
    for number, prompt, category in numbered_prompts(path):
        if category not in categories:
            remedy = "declare it in experts.yaml, or correct the line"
            raise DataError(f"{path}:{number}: category {category!r} is not declared; {remedy}")
        if text := normalize_prompt(prompt):
            found.setdefault(text, set()).add(category)
    added = {prompt: next(iter(names)) for prompt, names in found.items() if len(names) == 1}
    if several := len(found) - len(added):
        print_error(f"note: {path}: {several} prompts have several categories and are left out")
    kept = [
        (prompt, category) for prompt, category in pairs if added.get(normalize_prompt(prompt), category) == category
    ]
    before = {normalize_prompt(prompt): category for prompt, category in pairs}
    return [*kept, *((prompt, category) for prompt, category in added.items() if before.get(prompt) != category)]


def build_router(pairs: Sequence[tuple[str, str]], out: Path, *, encoder: str) -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs into the folder `out`. Returns its metrics."""
    import routers

    examples = [routers.Example(prompt, category) for prompt, category in pairs]
    with progress_bar("training") as progress:
        return routers.build(examples, encoder=encoder, out=out, progress=progress)
