"""`coe train`: trains the router on prompts with categories, and puts it into use unless it is worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.active_state import packaged_router
from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, declaration_for, print_result
from coe.learning.router_comparison import judge
from coe.learning.router_round import build_router, logged_corrections, training_pairs
from coe.measuring.tables import pairs_digest
from coe.reports.training import training_lines, training_report
from coe.terminal import exit_on_sigterm

Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: in the state folder].")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]
Force = Annotated[bool, typer.Option("--force", help="Put the router into use even if it is worse.")]


def train(
    data: Data = None,
    out: Out = None,
    encoder: Encoder = None,
    force: Force = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train the category router and put it into use, unless it is worse than the one in use.

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
        judged = judge(artifact, store, None if out else packaged_router(registry), registry, pairs)
    manifest = artifact.manifest
    if in_use := force or not judged.is_loss:
        store.promote(manifest.version, by="train", why=f"trained on {len(pairs)} prompts; {judged.sentence}")
    summary = {"version": manifest.version, "folder": str(artifact.folder), "in_use": in_use}
    summary |= {"metrics": manifest.metrics, **training_report(manifest.metrics, judged)}
    print_result(summary, training_lines(summary), json=json)
