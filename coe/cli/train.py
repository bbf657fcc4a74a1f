"""`coe train`: trains the router on prompts with categories and puts it into use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, declaration_for, print_result
from coe.learning.router_round import build_router, logged_corrections, training_pairs
from coe.measuring.tables import pairs_digest
from coe.terminal import exit_on_sigterm

Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: in the state folder].")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]


def train(
    data: Data = None,
    out: Out = None,
    encoder: Encoder = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train the category router and put it into use.

    Without --data, the prompts are those of `router.training_data`, or the starter prompts that ship with CoE.
    `router.extra_training_data` adds your own, and the routing log the prompts whose category was corrected.
    """
    settings, registry = declaration_for(config)
    pairs = training_pairs(registry, base=settings.config.parent, data=data)
    corrected = logged_corrections(settings, registry)
    store = ArtifactStore(out.absolute(), "router") if out else synced_store(settings, "router")
    with store.draft() as draft, exit_on_sigterm():
        encoder = encoder or registry.router.encoder
        metrics = build_router(pairs, draft, encoder=encoder, corrected=corrected, registry=registry)
        artifact = store.publish(draft, categories=registry.category_names, data=pairs_digest(pairs), metrics=metrics)
    store.promote(artifact.manifest.version, by="train", why=f"trained on {len(pairs)} prompts")
    manifest = artifact.manifest
    summary = {"version": manifest.version, "folder": str(artifact.folder), "metrics": manifest.metrics}
    print_result(summary, _lines(artifact), json=json)


def _lines(artifact: Artifact) -> Iterator[str]:
    manifest = artifact.manifest
    accuracy = manifest.metrics.get("accuracy")
    held_out = f", {accuracy:.1%} right on held-out prompts" if isinstance(accuracy, float) else ""
    yield f"router {manifest.version} is in use ({len(manifest.categories)} categories{held_out})"
    if dropped := {why: count for why, count in manifest.metrics.get("dropped", {}).items() if count}:
        yield "prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items())
    yield f"held-out figures are in {artifact.folder / MANIFEST}"
