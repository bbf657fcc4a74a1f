"""`coe train`: trains the router on prompts with categories and puts it into use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, ConfigFile, ExecutorOption, Json, declaration_for
from coe.cli.executor import Executor, task_runner
from coe.foreground import exit_on_sigterm
from coe.learning.training_data import build_router, training_pairs
from coe.measuring.tables import pairs_digest
from coe.terminal import print_json, print_line

Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Add = Annotated[
    Path | None, typer.Option("--add", help="Further prompts of that form, added to --data or the starter prompts.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: in the state folder].")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]


def train(
    file: ConfigFile = None,
    data: Data = None,
    add: Add = None,
    out: Out = None,
    encoder: Encoder = None,
    executor: ExecutorOption = Executor.LOCAL,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train the category router and put it into use.

    Without --data, the prompts are those of `router.training_data`, or the starter prompts that ship with CoE; --add
    keeps them and adds your own. `coe retrain` learns only from declared prompts: declare the file as
    `router.extra_training_data` to add it every time.
    """
    settings, registry = declaration_for(config, file)
    pairs = training_pairs(registry, base=settings.config.parent, data=data, extra=add)
    store = ArtifactStore(out.absolute(), "router") if out else synced_store(settings, "router")
    with task_runner(executor) as runner, store.draft() as draft, exit_on_sigterm():
        metrics = build_router(pairs, draft, encoder=encoder or registry.router.encoder, runner=runner)
        artifact = store.publish(draft, categories=registry.category_names, data=pairs_digest(pairs), metrics=metrics)
    store.promote(artifact.manifest.version, by="train", why=f"trained on {len(pairs)} prompts")
    _report(artifact, json)


def _report(artifact: Artifact, json: bool) -> None:
    manifest = artifact.manifest
    if json:
        summary: dict[str, Any] = {"version": manifest.version, "folder": str(artifact.folder)}
        print_json(summary | {"metrics": manifest.metrics})
        return
    accuracy = manifest.metrics.get("accuracy")
    held_out = f", {accuracy:.1%} right on held-out prompts" if isinstance(accuracy, float) else ""
    print_line(f"router {manifest.version} is in use ({len(manifest.categories)} categories{held_out})")
    dropped = {why: count for why, count in manifest.metrics.get("dropped", {}).items() if count}
    if dropped:
        print_line("prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items()))
    print_line(f"held-out figures are in {artifact.folder / MANIFEST}")
