"""`coe train`: trains the router on prompts with categories and puts it into use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, ConfigFile, ExecutorOption, Json, settings_for
from coe.jobs.executor import Executor, task_runner
from coe.jobs.foreground import exit_on_sigterm
from coe.jobs.training_data import build_router, training_pairs
from coe.learning.evaluation.tables import pairs_digest
from coe.learning.plots import RELIABILITY, RISK_COVERAGE, plot_training
from coe.registry import load
from coe.runtime.artifact_sync import synced_store
from coe.terminal import print_json, print_line

Data = Annotated[Path | None, typer.Option("--data", help="JSONL or parquet with prompt and category.")]
Add = Annotated[
    Path | None, typer.Option("--add", help="Further prompts of that form, beside --data or the starter prompts.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Artifact folder [default: in the state folder].")]
Encoder = Annotated[str | None, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]
TuneEncoder = Annotated[
    bool,
    typer.Option("--tune-encoder", help="Tune the encoder on the prompts too, and keep it if it routes better."),
]


def train(
    file: ConfigFile = None,
    data: Data = None,
    add: Add = None,
    out: Out = None,
    encoder: Encoder = None,
    tune_encoder: TuneEncoder = False,
    executor: ExecutorOption = Executor.LOCAL,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train the category router and put it into use.

    Without --data, the prompts are those of `router.training_data`, or the starter prompts that ship with CoE; --add
    keeps them and adds your own. `coe retrain` learns only from declared prompts: declare the file as
    `router.extra_training_data` to add it every time.

    --tune-encoder needs 20 English prompts of each category and takes minutes longer. `coe retrain` keeps a tuned
    encoder; a training without the option does not.
    """
    settings = settings_for(config, file)
    registry = load(settings.config, environ=settings.environ)
    pairs = training_pairs(registry, base=settings.config.parent, data=data, extra=add)
    store = ArtifactStore(out.absolute(), "router") if out else synced_store(settings, "router")
    with task_runner(executor) as runner, store.draft() as draft, exit_on_sigterm():
        source = encoder or registry.router.encoder
        metrics = build_router(pairs, draft, encoder=source, tune_encoder=tune_encoder, runner=runner)
        plot_training(metrics, draft)
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
    if tuning := manifest.metrics.get("tuning"):
        print_line(tuning_sentence(tuning))
    dropped = {why: count for why, count in manifest.metrics.get("dropped", {}).items() if count}
    if dropped:
        print_line("prompts left out: " + ", ".join(f"{count} {why}" for why, count in dropped.items()))
    drawn = [name for name in (RELIABILITY, RISK_COVERAGE) if name in manifest.files]
    plots = f"; plots: {' and '.join(drawn)}" if drawn else ""
    print_line(f"held-out figures are in {artifact.folder / MANIFEST}{plots}")


def tuning_sentence(tuning: Mapping[str, Any]) -> str:
    """Say whether the tuned encoder is in use, and the held-out accuracy with and without it."""
    if "difference" not in tuning:
        return "it keeps the tuned encoder of --encoder"
    found = (
        "in use" if tuning["in_use"] else "not in use, because it does not route better by more than a standard error"
    )
    return (
        f"the tuned encoder is {found}: {tuning['tuned']:.1%} right with it, {tuning['untuned']:.1%} without, on "
        f"{tuning['held_out']} held-out prompts ({100 * tuning['difference']:+.1f} ± "
        f"{100 * tuning['standard_error']:.1f} points)"
    )
