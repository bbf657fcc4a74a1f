"""Selects the labelled prompts that a router is trained on, and trains it (`coe train`, `coe retrain`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.errors import ConfigError, DataError
from coe.foreground import progress_bar
from coe.measuring.tables import numbered_prompts
from coe.registry import Registry
from coe.terminal import print_error

MAX_NOTES = 20
"""Lines of a file of prompts that are named."""

MIN_PROMPTS = 2
"""Prompts that training needs of each category."""


def training_pairs(
    registry: Registry, *, base: Path, data: Path | None, extra: Path | None = None
) -> list[tuple[str, str]]:
    """(prompt, category) pairs of the declared categories: a file's or the shipped ones, extra and declared examples.

    The file is `data`, or router.training_data relative to `base`. The extra ones are those of the file `extra` and of
    router.extra_training_data; a note names each that is left out. Raises DataError for a category in a file that
    experts.yaml does not declare, and ConfigError for a category with too few prompts.
    """
    pairs = _pairs(registry, base=base, data=data, extra=extra)
    if without := [registry.categories[index].name for index in _too_few(registry, pairs)]:
        raise ConfigError(f"too few training prompts for: {', '.join(without)}; add examples to them in experts.yaml")
    return pairs


def training_problems(registry: Registry, *, base: Path) -> dict[int, str]:
    """Return the index of each category that training would refuse, and why. Raises DataError as `training_pairs`."""
    pairs = _pairs(registry, base=base, data=None, extra=None)
    file = registry.router.training_data or "a file of `router.training_data`"
    return {
        index: f"category {registry.categories[index].name!r} has {count} training prompts and needs {MIN_PROMPTS}; "
        f"add `examples` to it, or prompts to {file}"
        for index, count in _too_few(registry, pairs).items()
    }


def _too_few(registry: Registry, pairs: Sequence[tuple[str, str]]) -> dict[int, int]:
    """Return the number of different prompts of each category that has too few, by its index."""
    counts = Counter(category for _, category in set(pairs))
    found = {index: counts[name] for index, name in enumerate(registry.category_names)}
    return {index: count for index, count in found.items() if count < MIN_PROMPTS}


def _pairs(registry: Registry, *, base: Path, data: Path | None, extra: Path | None) -> list[tuple[str, str]]:
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
    declared = registry.router.extra_training_data
    for path in (base / declared if declared else None, extra):
        if path is not None:
            added = add_prompts(pairs, path, categories=registry.category_names)
            _print_notes(added.notes)
            pairs = added.pairs
    return pairs + [(example, category.name) for category in registry.categories for example in category.examples]


@dataclass(frozen=True, slots=True)
class AddedPrompts:
    """A training set with the prompts of a further file, and a note for each line that changes more than that."""

    pairs: list[tuple[str, str]]
    notes: list[str]


def add_prompts(pairs: Sequence[tuple[str, str]], path: Path, *, categories: Collection[str]) -> AddedPrompts:
    """Add the prompts of a file to (prompt, category) pairs. Raises DataError.

    A prompt that is already in the pairs is not added again; if the file gives another category, that one replaces it.
    Prompts with several categories within the file are left out.
    """
    from routers.examples import normalize_prompt

    rows = [(number, normalize_prompt(prompt), category) for number, prompt, category in numbered_prompts(path)]
    unknown = [
        f"{path}:{number}: category {name!r} is not declared" for number, _, name in rows if name not in categories
    ]
    if unknown:
        raise DataError("\n".join([*unknown[:MAX_NOTES], "declare the category in experts.yaml, or correct the line"]))
    before = {normalize_prompt(prompt): category for prompt, category in pairs}
    lines: dict[str, dict[str, int]] = {}
    for number, prompt, category in rows:
        lines.setdefault(prompt, {}).setdefault(category, number)
    notes = [
        f"{path}:{number}: {note}"
        for number, prompt, category in rows
        if (note := _note(number, category, lines[prompt], before.get(prompt)) if prompt else "an empty prompt")
    ]
    added = {prompt: next(iter(found)) for prompt, found in lines.items() if prompt and len(found) == 1}
    kept = [
        (prompt, category) for prompt, category in pairs if added.get(normalize_prompt(prompt), category) == category
    ]
    new = {prompt: category for prompt, category in added.items() if before.get(prompt) != category}
    return AddedPrompts([*kept, *new.items()], notes)


def _note(number: int, category: str, lines: Mapping[str, int], before: str | None) -> str:
    """Return the note for a line; empty for a new prompt. `lines` has the first line of each category of its prompt,
    `before` is its category in the training set."""
    first = min(lines.values())
    if len(lines) > 1:  # the notes of the further lines name the first one
        return "" if number == first else f"the prompt of line {first}, with {' and '.join(lines)}; it is left out"
    if number != first:
        return f"the same as line {first}"
    if before is None:
        return ""
    return (
        "in the training set already" if before == category else f"{category!r} replaces {before!r} of the training set"
    )


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes[:MAX_NOTES]:
        print_error(f"note: {note}")
    if len(notes) > MAX_NOTES:
        print_error(f"note: and {len(notes) - MAX_NOTES} more lines like these")


def build_router(
    pairs: Sequence[tuple[str, str]], out: Path, *, encoder: str, cache: Path | None = None
) -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs into the folder `out`. Returns its metrics."""
    import routers

    examples = [routers.Example(prompt, category) for prompt, category in pairs]
    with progress_bar("training") as progress:
        return routers.build(examples, encoder=encoder, out=out, progress=progress, cache=cache)
