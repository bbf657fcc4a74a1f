"""`coe categories suggest`: proposes categories for prompts that the declared ones do not explain."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from coe.cli.common import Config, Json, print_result, settings_for
from coe.errors import DataError
from coe.measuring.tables import numbered_rows
from coe.reports.novelty import proposal_lines, propose_categories

app = typer.Typer(no_args_is_help=True, help="Propose categories for prompts that the declared ones do not explain.")
Prompts = Annotated[Path, typer.Argument(help="JSONL or parquet with prompt, such as `coe log export` writes.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=20_000, help="How many prompts to read at most.")]


@app.callback()
def categories() -> None:
    """Do nothing. Without a callback, typer would run the only command without its name `suggest`."""


@app.command("suggest")
def suggest(prompts: Prompts, limit: Limit = 5000, config: Config = None, json: Json = False) -> None:
    """Print an entry for experts.yaml for each kind of prompts that the router is unsure of or takes for `general`."""
    from coe.artifacts.active_state import check_router

    registry, artifact = check_router(settings_for(config))
    rows = islice(numbered_rows(prompts), limit)
    texts = list(dict.fromkeys(_prompt(row, f"{prompts}:{number}") for number, row in rows))
    unexplained, proposals = propose_categories(registry, artifact, texts)
    found = [asdict(one) | {"entry": one.entry} for one in proposals]
    report = {"prompts": len(texts), "unexplained": unexplained, "suggestions": found}
    print_result(report, proposal_lines(len(texts), unexplained, proposals), json=json)


def _prompt(row: object, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise DataError(f"{where}: expected an object with `prompt` (text)")
    return str(row["prompt"])
