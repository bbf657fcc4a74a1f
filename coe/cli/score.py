"""`coe score`: runs the experts on probes and writes quality data, from which `coe plan` makes a plan.

`coe probes`: lists the probes that `coe score` takes by default.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coe.cli.common import Config, Json, declaration_for, print_result, table
from coe.measuring.probes import DIFFICULTIES, SHIPPED, Probe, default_probes, own_file, read_probes
from coe.measuring.sandbox import installed
from coe.measuring.scoring import Scoring, open_journal, probes_with_passages, run_scoring
from coe.measuring.tables import require_parquet
from coe.registry import ExpertSpec, RecipeSpec, Registry
from coe.terminal import print_error

Probes = Annotated[
    Path | None,
    typer.Argument(
        help="JSONL, CSV or parquet, one probe a row [default: shipped ones, and probes.jsonl if it exists]."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the quality data and the journal of the run.")]
Experts = Annotated[list[str] | None, typer.Option("--expert", help="Score this expert only; may be repeated.")]
Again = Annotated[
    list[str] | None,
    typer.Option("--again", help="Replace the scores of this expert, or of a recipe and its members; may be repeated."),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="Score this chain or fuse, or have this cascade's judge grade; may be repeated."),
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Probes in flight at each expert.")]
Judge = Annotated[str | None, typer.Option("--judge", help="The expert that judges where no checker can.")]
Passages = Annotated[
    Literal["off", "both"],
    typer.Option("--retrieval", help="both: also score with passages of the declared store, to fit a gate."),
]


def score(
    out: Out,
    probes: Probes = None,
    expert: Experts = None,
    again: Again = None,
    recipe: Recipes = None,
    concurrency: Concurrency = 8,
    judge: Judge = None,
    retrieval: Passages = "off",
    config: Config = None,
    json: Json = False,
) -> None:
    """Score experts on probes. A stopped run continues where it stopped: only missing scores are requested.

    Local experts must be running: they are reached through the gateway (`coe up` in another terminal), external ones
    directly. Exit 1 if scores are missing at the end; a failed request is missing, not a zero.

    Without PROBES, the probes that ship with CoE are used, and those of probes.jsonl next to experts.yaml (`coe
    probes`).

    A probe has `prompt` or `messages`, `category`, optionally `id` and `difficulty`, and `checker`: exact, choice,
    numeric, contains or json with `reference`; constraints with `constraints`; code with `tests` (Python asserts, run
    in a sandbox); judge, optionally with `reference`, by --judge.

    With --recipe, chains and fuses of experts.yaml are scored, and of the experts only those that --expert names. Each
    answer takes a call to every member. The judge of a cascade grades the answers of all members but the last ones.

    The sandbox needs bubblewrap (apt-get install bubblewrap). Where it does not work, no request is sent. Without it,
    the default probes that run code are left out.
    """
    require_parquet()
    settings, registry = declaration_for(config)
    declared, renewed = {one.name: one for one in registry.declared_recipes}, list(again or ())
    asked = [name for name in renewed if name in declared]
    renewed += (member for name in asked for member in declared[name].members)
    called = (name for name in asked if declared[name].writes or declared[name].judge)
    recipes = [_scored_recipe(registry, name) for name in dict.fromkeys((*(recipe or ()), *called))]
    names = [*(expert or ()), *(name for name in renewed if name not in declared)]
    names = names or list(() if recipes else registry.expert_names)
    experts = [declared_expert(registry, name, "--expert") for name in dict.fromkeys(names)]
    judging = declared_expert(registry, judge, "--judge") if judge else None
    read = requested_probes(probes, registry, settings.config, runs_code=installed(), judge=judging)
    passages = asyncio.run(probes_with_passages(settings, registry, read)) if retrieval == "both" else ()
    scoring = Scoring(registry, read, passages, experts, judging, concurrency, recipes, renewed)
    with open_journal(out) as journal:
        benchmark = probes.stem if probes else SHIPPED
        report = run_scoring(scoring, settings, journal, out, benchmark=benchmark)
    print_result(report, _lines(report), json=json)
    if report["missing"]:
        raise typer.Exit(1)


def requested_probes(
    path: Path | None, registry: Registry, config: Path, *, runs_code: bool, judge: ExpertSpec | None
) -> list[Probe]:
    """Return the probes of a file; without one the shipped and the own ones.

    Prints what the latter leave out: categories without any, and code where it cannot run. Raises BadParameter for
    probes that need a `judge` where there is none.
    """
    if path is not None:
        found = read_probes(path, categories=registry.category_names)
    else:
        found = default_probes(own_file(config), registry.category_names)
        if not runs_code and any(probe.checker == "code" for probe in found):
            found = [probe for probe in found if probe.checker != "code"]
            print_error(
                "note: probes that run code are left out; the sandbox needs bubblewrap (apt-get install bubblewrap)"
            )
        covered = {probe.category for probe in found}
        if bare := [name for name in registry.category_names if name not in covered]:
            print_error(f"note: no probes for {', '.join(bare)}; add some to {own_file(config).name}")
    if judge is None and any(probe.checker == "judge" for probe in found):
        raise typer.BadParameter("some probes have checker 'judge'; name the expert that judges", param_hint="--judge")
    return found


def declared_expert(registry: Registry, name: str, option: str) -> ExpertSpec:
    """Return the declared expert that an option names. Raises BadParameter for another name."""
    if name not in registry.expert_names:
        declared = ", ".join(registry.expert_names)
        raise typer.BadParameter(f"{name!r} is not a declared expert; declared: {declared}", param_hint=option)
    return registry.expert(name)


def _scored_recipe(registry: Registry, name: str) -> RecipeSpec:
    """Return a declared recipe that must be scored by real calls."""
    found = next((recipe for recipe in registry.declared_recipes if recipe.name == name), None)
    if found is None:
        declared = ", ".join(recipe.name for recipe in registry.declared_recipes) or "none"
        raise typer.BadParameter(f"{name!r} is not a declared recipe; declared: {declared}", param_hint="--recipe")
    if not found.writes and found.judge is None:
        message = f"{name!r} compares answers, so `coe plan` prices it from those of its members; leave it out"
        raise typer.BadParameter(message, param_hint="--recipe")
    return found


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    experts = report["experts"]

    def digits(value: float | None, count: int = 3) -> str | None:
        return None if value is None else f"{value:.{count}f}"

    yield table(
        ("expert", *(f">{one}" for one in ("scored", "missing", "mean", "p50 ms", "tokens out", "cut"))),
        [
            (
                *(name, column["scored"], column["missing"], digits(column["mean"])),
                *(digits(column["latency_ms_p50"], 0), column["output_tokens"], column["cut"]),
            )
            for name, column in experts.items()
        ],
    )
    for name, column in experts.items():
        if column["missing"]:
            errors = ", ".join(f"{count} x {code}" for code, count in column["errors"].items()) or "not requested yet"
            yield f"{name}: {column['missing']} scores are missing ({errors}): {column['first_error'] or 'run again'}"
    state = "run again to fill gaps" if report["missing"] else "complete"
    state = "stopped; run again to continue" if report["stopped"] else state
    yield f"{report['probes']} probes, quality data in {report['out']} ({state})"


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
