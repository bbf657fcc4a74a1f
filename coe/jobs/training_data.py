"""Selects the labelled prompts that a router is trained on, and trains it (`coe train`, `coe retrain`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.errors import ConfigError, DataError
from coe.jobs.foreground import progress_bar
from coe.learning.evaluation.tables import read_prompts
from coe.registry import Registry

if TYPE_CHECKING:
    from routers.encoders import TaskRunner


def training_pairs(registry: Registry, *, base: Path, data: Path | None) -> list[tuple[str, str]]:
    """(prompt, category) pairs of the declared categories: a file's or the shipped ones, and declared examples.

    The file is `data`, or router.training_data relative to `base`. Raises DataError for a category in the file that
    experts.yaml does not declare, and ConfigError for a category without prompts.
    """
    import routers

    if data is None and registry.router.training_data:
        data = base / registry.router.training_data
    if data is not None:
        pairs = read_prompts(data)
        if unknown := sorted({category for _, category in pairs} - set(registry.category_names)):
            raise DataError(f"{data}: categories that experts.yaml does not declare: {', '.join(unknown)}")
    else:
        pairs = [
            (one.prompt, one.category) for one in routers.starter_examples() if one.category in registry.category_names
        ]
    pairs += [(example, category.name) for category in registry.categories for example in category.examples]
    counts = Counter(category for _, category in pairs)
    if without := [name for name in registry.category_names if not counts[name]]:
        raise ConfigError(f"no training prompts for: {', '.join(without)}; add examples to them in experts.yaml")
    return pairs


def build_router(
    pairs: Sequence[tuple[str, str]], out: Path, *, encoder: str, runner: TaskRunner, cache: Path | None = None
) -> Mapping[str, Any]:
    """Train a router on (prompt, category) pairs into the folder `out`. Returns its metrics."""
    import routers

    examples = [routers.Example(prompt, category) for prompt, category in pairs]
    with progress_bar("training") as progress:
        return routers.build(examples, encoder=encoder, out=out, progress=progress, cache=cache, runner=runner)
