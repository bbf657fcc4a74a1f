"""`coe probes`: lists the probes that `coe score` takes by default."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from coe.cli.common import Config, Json, declaration_for, print_result, table
from coe.measuring.probes.probes import DIFFICULTIES, default_probes, own_file

SHOWN_CHARACTERS = 90
Category = Annotated[str, typer.Option("--category", help="A category of experts.yaml.")]


def probes(category: Category = "", config: Config = None, json: Json = False) -> None:
    """Count the probes by category and difficulty; with --category, list those of one. --json has them whole.

    These are the probes that ship with CoE and those of probes.jsonl next to experts.yaml, which `coe score` takes.
    """
    settings, registry = declaration_for(config)
    names = registry.category_names
    found = [one for one in default_probes(own_file(settings.config), names) if category in ("", one.category)]
    fields = ("prompt_id", "category", "difficulty", "prompt", "checker", "reference", "tests", "constraints")
    whole = [{name: value for name in fields if (value := getattr(one, name)) not in (None, "")} for one in found]
    if category:
        rows = [
            (one.prompt_id, one.difficulty, one.checker, one.prompt.split("\n")[0][:SHOWN_CHARACTERS]) for one in found
        ]
        text = table(("id", "difficulty", "checker", "prompt"), rows)
    else:
        counts = Counter((one.category, one.difficulty) for one in found)
        totals = Counter(one.category for one in found)
        numbers = [(name, totals[name], *(counts[name, level] for level in DIFFICULTIES)) for name in names]
        text = table(("category", ">probes", *(f">{level}" for level in DIFFICULTIES)), numbers)
    print_result({"probes": whole}, text, json=json)
