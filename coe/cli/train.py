"""`coe train`: trains the router on prompts with categories, and puts it into use unless it is worse.

`coe categories suggest`: proposes categories for prompts that the declared ones do not explain.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.active_state import check_router, packaged_router
from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, declaration_for, print_result, settings_for
from coe.errors import DataError
from coe.learning.router_comparison import judge
from coe.learning.router_round import build_router, logged_corrections, training_pairs
from coe.measuring.tables import numbered_rows, pairs_digest
from coe.reports.novelty import proposal_lines, propose_categories
from coe.reports.training import training_lines, training_report
from coe.terminal import exit_on_sigterm

Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: in the state folder].")]
Force = Annotated[bool, typer.Option("--force", help="Put the router into use even if it is worse.")]


def train(data: Data = None, out: Out = None, force: Force = False, config: Config = None, json: Json = False) -> None:
    """Train the category router and put it into use, unless it is worse than the one in use.

    Without --data, the prompts are those of `router.training_data`, or the starter prompts that ship with CoE.
    `router.extra_training_data` adds your own, and the routing log the prompts whose category was corrected.
    """
    settings, registry = declaration_for(config)
    pairs = training_pairs(registry, base=settings.config.parent, data=data)
    corrected = logged_corrections(settings, registry)
    store = ArtifactStore(out.absolute(), "router") if out else synced_store(settings, "router")
    with store.draft() as draft, exit_on_sigterm():
        metrics = build_router(pairs, draft, corrected=corrected, registry=registry)
        artifact = store.publish(draft, categories=registry.category_names, data=pairs_digest(pairs), metrics=metrics)
        judged = judge(artifact, store, None if out else packaged_router(registry), registry, pairs)
    version, in_use = artifact.manifest.version, force or not judged.is_loss
    if in_use:
        store.promote(version, by="train", why=f"trained on {len(pairs)} prompts; {judged.sentence}")
    summary = {"version": version, "folder": str(artifact.folder), "in_use": in_use, "metrics": metrics}
    summary |= training_report(metrics, judged)
    print_result(summary, training_lines(summary), json=json)


categories = typer.Typer(no_args_is_help=True, help="Propose categories for prompts that the router cannot place.")
categories.callback()(lambda: None)  # without one, typer would run the only command without its name `suggest`


@categories.command("suggest")
def suggest(
    prompts: Annotated[Path, typer.Argument(help="JSONL or parquet with prompt.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Print an entry for experts.yaml for each kind of prompts that the router is unsure of or takes for `general`."""
    registry, artifact = check_router(settings_for(config))
    try:
        texts = list(dict.fromkeys(str(row["prompt"]) for _, row in numbered_rows(prompts)))
    except (KeyError, TypeError) as error:
        raise DataError(f"{prompts}: expected objects with `prompt` ({error!r})") from None
    unexplained, proposals = propose_categories(registry, artifact, texts)
    report = {"prompts": len(texts), "unexplained": unexplained, "suggestions": list(map(asdict, proposals))}
    print_result(report, proposal_lines(len(texts), unexplained, proposals), json=json)
