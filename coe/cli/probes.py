"""`coe probes`: lists the probes of `coe score`, and imports one's own from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import Config, Json, declaration_for, print_result, table
from coe.measuring.probes.imports import rows_of, with_checker
from coe.measuring.probes.probes import DIFFICULTIES, Probe, probe_of, read_probes
from coe.measuring.probes.shipped import default_probes, own_file
from coe.registry import Registry
from coe.terminal import print_error

SHOWN_CHARACTERS = 90
MAX_SHOWN_REASONS = 10
app = typer.Typer(no_args_is_help=True, help="List and import probes: prompts with checkers, for `coe score`.")
Category = Annotated[str, typer.Option("--category", help="A category of experts.yaml.")]
Into = Annotated[Path | None, typer.Option("--to", help="File of your probes [default: probes.jsonl by experts.yaml].")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the numbers in templates.")]


@app.command("list")
def list_probes(category: Category = "", seed: Seed = 0, config: Config = None, json: Json = False) -> None:
    """Count the probes by category and difficulty; with --category, list those of one. --json has them whole."""
    settings, registry = declaration_for(config)
    names = registry.category_names
    found = [one for one in default_probes(own_file(settings.config), names, seed) if category in ("", one.category)]
    fields = ("prompt_id", "category", "difficulty", "prompt", "checker", "reference", "tests", "constraints")
    whole = [{name: value for name in fields if (value := getattr(one, name)) not in (None, "")} for one in found]
    print_result({"probes": whole}, _probes(found) if category else _counts(found, names), json=json)


def _probes(found: Iterable[Probe]) -> Iterator[str]:
    rows = []
    for one in found:
        text = one.prompt if isinstance(one.prompt, str) else orjson.dumps(one.prompt).decode()
        rows.append((one.prompt_id, one.difficulty, one.checker, text.split("\n")[0][:SHOWN_CHARACTERS]))
    yield table(("id", "difficulty", "checker", "prompt"), rows)


def _counts(found: Sequence[Probe], names: Iterable[str]) -> Iterator[str]:
    counts = Counter((one.category, one.difficulty) for one in found)
    totals = Counter(one.category for one in found)
    rows = [(name, totals[name], *(counts[name, level] for level in DIFFICULTIES)) for name in names]
    yield table(("category", ">probes", *(f">{level}" for level in DIFFICULTIES)), rows)


ImportedFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .jsonl file.")]
Default = Annotated[str, typer.Option("--category", help="Category of the rows that name none.")]


@app.command("import")
def import_probes(
    file: ImportedFile,
    category: Default = "",
    to: Into = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Import probes from a CSV table or JSON Lines, whose rows need not name a category or a checker.

    A row that no checker can score, or that is there already, is left out with the reason. Exit 1 if none is imported.
    """
    settings, registry = declaration_for(config)
    own = to or own_file(settings.config)
    if file.suffix not in (".csv", ".jsonl"):
        raise typer.BadParameter(f"{file.name}: expected a .csv or .jsonl file", param_hint="FILE")
    good, left_out = _sort_rows(rows_of(file), category, registry, own)
    if good:
        has_line_break = not own.exists() or own.read_bytes()[-1:] in (b"", b"\n")
        with own.open("ab") as to_file:
            to_file.write((b"" if has_line_break else b"\n") + b"".join(orjson.dumps(row) + b"\n" for row in good))
    more = [f"and {len(left_out) - MAX_SHOWN_REASONS} more; --json lists all"] * (len(left_out) > MAX_SHOWN_REASONS)
    for reason in [] if json else left_out[:MAX_SHOWN_REASONS] + more:
        print_error(f"left out: {reason}")
    line = f"{len(good)} probes imported into {own}, {len(left_out)} left out"
    print_result({"imported": len(good), "left_out": left_out, "file": str(own)}, line, json=json)
    if not good:
        raise typer.Exit(1)


def _sort_rows(
    rows: Iterable[tuple[str, Any]], category: str, registry: Registry, own: Path
) -> tuple[list[Any], list[str]]:
    """Return the rows to add to the own probes, and the place and the reason of each other one.

    Raises DataError for mistakes in the own probes.
    """
    good: list[Any] = []
    left_out, known = [], set()
    if own.is_file() and own.stat().st_size:
        known = {probe.prompt_id for probe in read_probes(own, categories=registry.category_names)}
    for place, row in rows:
        try:
            row = with_checker(row)
            if category and isinstance(row, dict):
                row = {"category": category} | row
            identity = probe_of(row, registry.category_names).prompt_id
            if identity in known:
                raise ValueError("a probe with this id or prompt is there already")
            known.add(identity)
            good.append(row)
        except ValueError as error:
            left_out.append(f"{place}: {error}")
    return good, left_out
