"""`coe train`: prompts with categories become the router in use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, say, say_json, settings_for, store_of
from coe.errors import ConfigError, DataError
from coe.jobs.engine import Engine, EngineOption, working
from coe.jobs.progress import progress_bar
from coe.jobs.signals import heeding_sigterm
from coe.learning.plots import RELIABILITY, RISK_COVERAGE, plot_training
from coe.learning.prompts import digest, read_prompts
from coe.registry import Registry, load

Pairs = list[tuple[str, str]]
Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: artifacts in the state folder].")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]


def train(
    data: Data = None,
    out: Out = None,
    encoder: Encoder = None,
    engine: EngineOption = Engine.LOCAL,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train the category router and put it into use."""
    import routers

    settings = settings_for(config)
    registry = load(settings.config, environ=settings.environ)
    pairs = training_pairs(registry, base=settings.config.parent, data=data)
    store = ArtifactStore(out.absolute(), "router") if out else store_of(settings, "router")
    with (
        working(engine) as work,
        store.draft() as draft,
        progress_bar("training") as progress,
        heeding_sigterm(),
    ):
        examples = [routers.Example(prompt, category) for prompt, category in pairs]
        encoder = encoder or registry.router.encoder
        metrics = routers.build(examples, encoder=encoder, out=draft, progress=progress, work=work)
        plot_training(metrics, draft)
        artifact = store.publish(draft, categories=registry.category_names, data=digest(pairs), metrics=metrics)
    store.promote(artifact.manifest.version, by="train", why=f"trained on {len(pairs)} prompts")
    _report(artifact, json)


def training_pairs(registry: Registry, *, base: Path, data: Path | None) -> Pairs:
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
        kept = (one for one in routers.shipped() if one.category in registry.category_names)
        pairs = [(one.prompt, one.category) for one in kept]
    pairs += [(example, category.name) for category in registry.categories for example in category.examples]
    counts = Counter(category for _, category in pairs)
    if bare := [name for name in registry.category_names if not counts[name]]:
        raise ConfigError(f"no training prompts for: {', '.join(bare)}; add examples to them in experts.yaml")
    return pairs


def _report(artifact: Artifact, json: bool) -> None:
    manifest = artifact.manifest
    if json:
        summary: dict[str, Any] = {"version": manifest.version, "folder": str(artifact.folder)}
        say_json(summary | {"metrics": manifest.metrics})
        return
    accuracy = manifest.metrics.get("accuracy")
    held_out = f", {accuracy:.1%} right on held-out prompts" if isinstance(accuracy, float) else ""
    say(f"router {manifest.version} is in use ({len(manifest.categories)} categories{held_out})")
    dropped = {why: count for why, count in manifest.metrics.get("dropped", {}).items() if count}
    if dropped:
        say("prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items()))
    drawn = [name for name in (RELIABILITY, RISK_COVERAGE) if name in manifest.files]
    beside = f"; drawn beside it in {' and '.join(drawn)}" if drawn else ""
    say(f"held-out figures are in {artifact.folder / MANIFEST}{beside}")
