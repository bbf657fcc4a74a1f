"""`coe probes`: lists and shows the probes of `coe score`, and adds one's own: from files, from the log."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import Config, Json, declaration_for, duration_seconds, print_result, settings_for
from coe.errors import DataError
from coe.learning.log_frame import Ratings, open_logs
from coe.measuring.probes.imports import rows_of, with_checker
from coe.measuring.probes.probes import DIFFICULTIES, probe_of, read_probes
from coe.measuring.probes.shipped import own_file, shipped_rows
from coe.measuring.tables import numbered_rows
from coe.records import require_log
from coe.records.record import RoutingRecord
from coe.registry import Registry
from coe.terminal import print_error, print_json, print_line

SHOWN_CHARACTERS = 90
MAX_SHOWN_REASONS = 10
app = typer.Typer(no_args_is_help=True, help="List, show and import probes: prompts with checkers, for `coe score`.")
Category = Annotated[str, typer.Option("--category", help="A category of experts.yaml.")]
Into = Annotated[Path | None, typer.Option("--to", help="File of your probes [default: probes.jsonl by experts.yaml].")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the numbers in templates.")]


@app.command("list")
def list_probes(category: Category = "", config: Config = None, json: Json = False) -> None:
    """Count the probes by category and difficulty; with --category, list those of one."""
    registry, own = _declared(config)
    rows = [row for row in _rows(registry, own) if category in ("", row["category"])]
    if json:
        listed = [{key: row.get(key) for key in _LISTED} | {"template": row.get("draw") is not None} for row in rows]
        print_json({"probes": listed})
    elif category:
        for row in rows:
            print_line(f"{row['id']!s:24} {row.get('difficulty', '-'):7} {row['checker']:11} {_first_line(row)}")
    else:
        print_line(f"{'category':20} {'probes':>6} {'easy':>6} {'medium':>6} {'hard':>6} {'templates':>9} {'own':>5}")
        for name in registry.category_names:
            print_line(_counts(name, [row for row in rows if row["category"] == name]))


_LISTED = ("id", "category", "difficulty", "checker", "prompt", "own")


def _counts(name: str, rows: list[dict[str, Any]]) -> str:
    levels = Counter(row.get("difficulty") for row in rows)
    by_level = " ".join(f"{levels[level]:6}" for level in DIFFICULTIES)
    templates, own = sum(row.get("draw") is not None for row in rows), sum(row["own"] for row in rows)
    return f"{name:20} {len(rows):6} {by_level} {templates:9} {own:5}"


def _first_line(row: dict[str, Any]) -> str:
    text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
    return str(text).split("\n")[0][:SHOWN_CHARACTERS]


Id = Annotated[str, typer.Argument(metavar="ID", help="The id, as `coe probes list --category` shows it.")]


@app.command("show")
def show(wanted: Id, seed: Seed = 0, config: Config = None, json: Json = False) -> None:
    """Show a probe: what is sent, and what an answer is checked against. A template is drawn with --seed."""
    registry, own = _declared(config)
    row = next((row for row in reversed(_rows(registry, own)) if str(row["id"]) == wanted), None)
    if row is None:
        raise DataError(f"no probe has the id {wanted!r}; `coe probes list --category NAME` lists them")
    probe = probe_of(row, registry.category_names, seed)
    fields = ("prompt_id", "category", "difficulty", "prompt", "checker", "reference", "tests", "constraints")
    shown = {name: value for name in fields if (value := getattr(probe, name)) not in (None, "")}
    texts = {name: one if isinstance(one, str) else orjson.dumps(one).decode() for name, one in shown.items()}
    print_result(shown, (f"{name}: {text}" for name, text in texts.items()), json=json)


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
    registry, own = _declared(config, to)
    if file.suffix not in (".csv", ".jsonl"):
        raise typer.BadParameter(f"{file.name}: expected a .csv or .jsonl file", param_hint="FILE")
    count, left_out = _add_rows(rows_of(file), category, registry, own)
    more = [f"and {len(left_out) - MAX_SHOWN_REASONS} more; --json lists all"] * (len(left_out) > MAX_SHOWN_REASONS)
    for reason in [] if json else left_out[:MAX_SHOWN_REASONS] + more:
        print_error(f"left out: {reason}")
    line = f"{count} probes imported into {own}, {len(left_out)} left out"
    print_result({"imported": count, "left_out": left_out, "file": str(own)}, line, json=json)
    if not count:
        raise typer.Exit(1)


def _add_rows(rows: Iterable[tuple[str, Any]], category: str, registry: Registry, own: Path) -> tuple[int, list[str]]:
    """Add the good rows to the own probes. Returns their number, and the place and the reason of each other one."""
    known, good, left_out = _known(own, registry), [], []
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
    if good:
        _append(own, good)
    return len(good), left_out


Since = Annotated[str, typer.Option("--since", help="Requests not older than this, for example 12h or 30d.")]
Tenants = Annotated[
    list[str] | None, typer.Option("--tenant", help="Tenant whose prompts may be used; may be repeated.")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many probes at most, the newest first.")]


@app.command("from-log")
def from_log(
    since: Since = "30d",
    tenant: Tenants = None,
    limit: Limit = 100,
    to: Into = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Turn requests that users liked, or whose category they corrected, into probes for `coe score --judge`.

    The log has their text only where `log.store_prompts` is set. Where experts.yaml declares API keys, only requests of
    the tenants that --tenant names are read. Requests that not every expert may receive, and all of keys with a list of
    experts, are left out. Exit 1 if there are none.
    """
    registry, own = _declared(config, to)
    is_agreed = _agreed_requests(registry, tenant)
    settings = settings_for(config)
    first = time.time() - duration_seconds(since, option="--since")
    require_log(registry.log.url, base=settings.home)
    with open_logs(registry.log.url, base=settings.home) as logs:
        ratings = Ratings(event for page in logs.feedback(since=first) for event in page)
        chosen = _good_requests(logs.records(since=first, until=time.time()), ratings, is_agreed)
        newest = deque(chosen, maxlen=limit)
    count, left_out = _add_rows((("", row) for row in newest), "", registry, own)
    line = f"{count} probes added to {own}, {len(left_out)} left out: there already, or of no declared category"
    print_result({"added": count, "left_out": len(left_out), "file": str(own)}, line, json=json)
    if not count:
        raise typer.Exit(1)


def _agreed_requests(registry: Registry, tenants: Collection[str] | None) -> Callable[[RoutingRecord], bool]:
    """Return the filter of logged requests whose text may be used for more than their answer: those of the tenants that
    agree, or of all without API keys; none that may not reach every expert, since such a text leaves the log.

    Raises BadParameter if API keys are declared and no tenant is named.
    """
    if registry.access.keys and not tenants:
        raise typer.BadParameter("name each tenant that agrees to the use of its requests", param_hint="--tenant")

    def is_agreed(record: RoutingRecord) -> bool:
        return (not tenants or record.tenant in tenants) and not record.limited

    return is_agreed


GOOD_SCORE = 0.8
"""Lowest score of a request that counts as liked."""


def _good_requests(
    pages: Iterable[Iterable[RoutingRecord]], ratings: Ratings, is_agreed: Callable[[RoutingRecord], bool]
) -> Iterator[dict[str, Any]]:
    """Yield a row for every agreed request with its text that was liked, or whose category was corrected."""
    for record in (record for page in pages for record in page):
        rating = ratings.of(record)
        is_liked = rating.feedback_value is not None and rating.feedback_value >= GOOD_SCORE
        if record.prompt and not record.purpose and is_agreed(record) and (is_liked or rating.feedback_category):
            category = rating.feedback_category or record.category
            yield {"prompt": record.prompt, "category": category, "checker": "judge"}


def _declared(config: Path | None, to: Path | None = None) -> tuple[Registry, Path]:
    """Return the declared experts.yaml and the file of own probes."""
    settings, registry = declaration_for(config)
    return registry, to or own_file(settings.config)


def _rows(registry: Registry, own: Path) -> list[dict[str, Any]]:
    """Return the rows of shipped and own probes, all with an id; own ones replace shipped ones as in `coe score`.

    A template replaces only a template, since the ids of drawn probes end in the seed. Raises DataError for mistakes
    in the own ones.
    """
    rows = [row | {"own": False} for row in shipped_rows(registry.category_names)]
    if _known(own, registry):
        probes = read_probes(own, categories=registry.category_names)
        mine = zip((row for _, row in numbered_rows(own)), probes, strict=True)
        rows += [
            row | {"own": True, "id": probe.prompt_id if row.get("id") is None else row["id"]} for row, probe in mine
        ]
    return list({(str(row["id"]), row.get("draw") is not None): row for row in rows}.values())


def _known(own: Path, registry: Registry) -> set[str]:
    """Return the ids of the own probes. Raises DataError for mistakes in their file."""
    if not own.is_file() or not own.stat().st_size:
        return set()
    return {probe.prompt_id for probe in read_probes(own, categories=registry.category_names)}


def _append(own: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add lines to the file of own probes, after a line break if its last line lacks one."""
    whole = not own.exists() or own.read_bytes()[-1:] in (b"", b"\n")
    with own.open("ab") as file:
        file.write((b"" if whole else b"\n") + b"".join(orjson.dumps(row) + b"\n" for row in rows))
