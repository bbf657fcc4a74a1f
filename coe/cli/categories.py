"""`coe categories suggest`: proposes categories for prompts that the declared ones do not explain."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.active_state import check_router
from coe.cli.common import Config, Json, print_result, settings_for
from coe.errors import DataError
from coe.measuring.tables import numbered_rows
from coe.reports.novelty import proposal_lines, propose_categories

MAX_PROMPTS = 20_000
app = typer.Typer(no_args_is_help=True, help="Propose categories for prompts that the declared ones do not explain.")
app.callback()(lambda: None)  # without one, typer would run the only command without its name `suggest`


@app.command("suggest")
def suggest(
    prompts: Annotated[Path, typer.Argument(help="JSONL or parquet with prompt.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """Print an entry for experts.yaml for each kind of prompts that the router is unsure of or takes for `general`."""
    registry, artifact = check_router(settings_for(config))
    try:
        texts = list(dict.fromkeys(str(row["prompt"]) for _, row in islice(numbered_rows(prompts), MAX_PROMPTS)))
    except (KeyError, TypeError) as error:
        raise DataError(f"{prompts}: expected objects with `prompt` ({error!r})") from None
    unexplained, proposals = propose_categories(registry, artifact, texts)
    found = [asdict(one) | {"entry": one.entry} for one in proposals]
    report = {"prompts": len(texts), "unexplained": unexplained, "suggestions": found}
    print_result(report, proposal_lines(len(texts), unexplained, proposals), json=json)
