"""`coe categories suggest`: proposes categories for prompts that the router does not recognise."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from coe.cli.common import Config, Json, agreed_requests, duration_seconds, settings_for
from coe.errors import DataError
from coe.foreground import note_if_slow
from coe.learning.experience_loader import open_logs
from coe.measuring.tables import numbered_rows
from coe.records import missing_file
from coe.registry import Registry
from coe.reports.novelty import MIN_CLUSTER_SIZE, CategoryProposal, category_entry, propose_categories
from coe.settings import Settings
from coe.terminal import print_error, print_json, print_line

MAX_PROMPTS = 20_000
MAX_OVERLAPS = 3
"""Declared categories that a suggestion names."""

app = typer.Typer(no_args_is_help=True, help="Suggest categories for prompts that the router does not recognise.")
Prompts = Annotated[Path | None, typer.Argument(help="JSONL or parquet with prompt [default: the routing log].")]
Since = Annotated[str, typer.Option("--since", help="Logged requests not older than this, such as 12h or 30d.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=MAX_PROMPTS, help="How many prompts to read at most.")]
Below = Annotated[
    float, typer.Option("--below", min=0, max=1, help="Prompts below this confidence of the router are clustered.")
]
Tenants = Annotated[
    list[str] | None, typer.Option("--tenant", help="Tenant whose logged prompts may be used; may be repeated.")
]


@app.callback()
def categories() -> None:
    """Do nothing. Without a callback, typer would run the only command without its name `suggest`."""


@app.command("suggest")
def suggest(
    prompts: Prompts = None,
    since: Since = "7d",
    limit: Limit = 5000,
    below: Below = 0.7,
    tenant: Tenants = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Cluster the prompts that the router is unsure of, and print an entry for experts.yaml for each cluster.

    An entry has a name and a description to edit, and examples. Comments give the size of the cluster, and the declared
    categories that its prompts are routed to now. The log has prompts only where `log.store_prompts` is set. Where
    experts.yaml declares API keys, only requests of the tenants that --tenant names are read. Requests that may not
    reach every expert are left out.
    """
    from coe.artifacts.active_state import check_router, load_router

    settings = settings_for(config)
    registry, artifact = check_router(settings)
    if prompts is None:
        texts = _logged(settings, registry, duration_seconds(since, option="--since"), limit, tenant)
    else:
        texts = _prompts_from_file(prompts, limit)
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    router = load_router(registry, artifact)
    with note_if_slow("classifying the prompts"):
        found = router.predict(texts) if texts else []
    confidence = np.array([one.confidence for one in found])
    unsure = np.flatnonzero(confidence < below)
    print_error(f"{len(unsure)} of {len(texts)} different prompts are below the confidence {below:.2f}")
    if len(unsure) < 2 * MIN_CLUSTER_SIZE:
        print_error(f"note: clusters take {2 * MIN_CLUSTER_SIZE} of them or more; give more prompts")
    proposals = _proposals(texts, unsure, [found[row].best for row in unsure], artifact.folder, router.categories)
    entries = [(one, _entry(one, texts, unsure)) for one in proposals]
    if json:
        rows = [one.to_json() | {"share": one.requests / len(texts), "entry": entry} for one, entry in entries]
        print_json({"prompts": len(texts), "unsure": len(unsure), "below": below, "suggestions": rows})
        return
    for one, entry in entries:
        overlap = ", ".join(f"{name} {share:.0%}" for name, share in islice(one.overlap.items(), MAX_OVERLAPS))
        print_line(f"# {one.requests} prompts ({one.requests / len(texts):.1%}), silhouette {one.silhouette:.2f}")
        print_line(f"# routed now to {overlap}\n{entry}")
    if not entries:
        print_error("no cluster is distinct enough for its own category")


def _proposals(
    texts: Sequence[str], unsure: np.ndarray[Any, Any], best: Sequence[int], router: Path, names: Sequence[str]
) -> tuple[CategoryProposal, ...]:
    """The proposals; their rows are those of `unsure`."""
    if not len(unsure):
        return ()
    import routers

    with note_if_slow("embedding the prompts"):
        vectors = routers.load_encoder(router).encode([texts[row] for row in unsure])
    confidence = np.zeros(len(unsure))  # with below=1.0, all are clustered: the caller has applied the threshold
    return propose_categories(vectors, confidence, np.array(best), categories=names, below=1.0)


def _entry(proposal: CategoryProposal, texts: Sequence[str], unsure: np.ndarray[Any, Any]) -> str:
    members, exemplars = ([texts[unsure[row]] for row in rows] for rows in (proposal.members, proposal.exemplars))
    return category_entry(exemplars, texts, members)


def _prompts_from_file(path: Path, limit: int) -> list[str]:
    """The prompts of a file, up to `limit`. Raises DataError with the line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON Lines or parquet with prompt")
    texts = []
    for number, row in islice(numbered_rows(path, columns=("prompt",)), limit):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise DataError(f"{path}:{number}: expected an object with `prompt` (text)")
        texts.append(row["prompt"])
    return texts


def _logged(
    settings: Settings, registry: Registry, seconds: int, limit: int, tenants: Sequence[str] | None
) -> list[str]:
    """The newest prompts of users' requests in the log. Raises DataError where it keeps none."""
    is_agreed, url = agreed_requests(registry, tenants), registry.log.url
    if missing := missing_file(url, base=settings.home):
        raise DataError(f"{missing}: there is no routing log yet; name a file of prompts")
    now = time.time()
    with open_logs(url, base=settings.home) as logs:
        newest = deque(
            (
                record.prompt
                for page in logs.records(since=now - seconds, until=now)
                for record in page
                if record.prompt and is_agreed(record)
            ),
            maxlen=limit,
        )
    if not newest:
        raise DataError("the log has no prompts of that time; set `log.store_prompts`, or name a file of prompts")
    return list(newest)
