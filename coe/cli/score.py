"""`coe score`: run the experts on a probe set and write quality data, which `coe plan` turns into who answers what."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import SecretStr

from coe.cli.common import Config, Json, settings_for
from coe.errors import DataError, ExpertUnavailable
from coe.learning.evaluation.answers import RetryLimits
from coe.learning.evaluation.journal import Journal
from coe.learning.evaluation.judge import Judge
from coe.learning.evaluation.passage_gain import GAINS, ProbesWithPassages, supplied, write_gains
from coe.learning.evaluation.probes import Probe, read_probes
from coe.learning.evaluation.quality import require_parquet, write_quality
from coe.learning.evaluation.sandbox import Sandbox
from coe.learning.evaluation.score_report import report_of
from coe.learning.evaluation.scoring_run import Column, Run, keys_of, score_columns
from coe.learning.evaluation.tables import find_table
from coe.registry import ExpertSpec, Registry, load
from coe.settings import Endpoint, Settings
from coe.terminal import printable, say, say_error, say_json

if TYPE_CHECKING:
    from coe.experts.http.client import Client

JOURNAL = "journal.jsonl"

Probes = Annotated[Path, typer.Argument(help="JSONL or parquet, one probe a line: prompt, category, checker, ...")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the quality data and the journal of the run.")]
Only = Annotated[list[str] | None, typer.Option("--expert", help="Score this expert only; may be repeated.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, max=256, help="Probes in flight at each expert.")]
JudgeName = Annotated[str | None, typer.Option("--judge", help="The expert that judges where no checker can.")]
Passages = Annotated[
    Literal["off", "both"],
    typer.Option("--retrieval", help="both: ask with passages of the declared store too, to fit a gate."),
]
Unsafe = Annotated[
    bool, typer.Option("--unsafe", help="Run code of experts without a sandbox, with the rights of this user.")
]
Advance = Callable[[str], None]


def score(
    probes: Probes,
    out: Out,
    expert: Only = None,
    concurrency: Concurrency = 8,
    judge: JudgeName = None,
    retrieval: Passages = "off",
    unsafe: Unsafe = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Score experts on probes. A run that was stopped goes on where it was; only what is missing is asked.

    Local experts must be running: they are asked through the gateway (`coe up` in another terminal), external ones
    directly. Exit 1 when scores are missing in the end: no expert gets a zero for failing.

    A probe has `prompt` or `messages`, `category`, maybe `id`, and `checker`: exact, choice, numeric or contains with
    `reference`; code with `tests` (Python asserts, run in a sandbox); judge, maybe with `reference`, by --judge.

    The sandbox needs bubblewrap (apt-get install bubblewrap). Where it does not isolate, no expert is asked.
    """
    require_parquet()
    settings = settings_for(config)
    registry = load(settings.config, environ=settings.environ)
    asked = [_spec_of(registry, name, "--expert") for name in dict.fromkeys(expert or registry.expert_names)]
    judging = _spec_of(registry, judge, "--judge") if judge else None
    read = read_probes(probes, categories=registry.category_names)
    if judging is None and any(probe.checker == "judge" for probe in read):
        raise typer.BadParameter("some probes have checker 'judge'; name the expert that judges", param_hint="--judge")
    keys = {spec.name: keys_of(read, spec, judging) for spec in registry.experts}
    given = asyncio.run(_given(settings, registry, read)) if retrieval == "both" else []
    with_ = {spec.name: keys_of([one.probe for one in given], spec, judging) for spec in registry.experts}
    plan = _Plan(read, keys, asked, judging, concurrency, given, with_, unsafe)
    with _journal(out) as journal:
        reused = {spec.name: sum(key in journal.scored for key in keys[spec.name]) for spec in asked}
        stopped = False
        try:
            asyncio.run(_score(plan, settings, journal))
        except KeyboardInterrupt:
            stopped = True
        _write(plan, registry, journal, out, benchmark=probes.stem)
        report = report_of(read, {spec.name: keys[spec.name] for spec in asked}, journal, reused=reused)
        report |= _with_passages(plan, journal, report["missing"])
    report |= {"out": str(out), "stopped": stopped}
    say_json(report) if json else _tell(report)
    if report["missing"]:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a run is asked to do. `keys` holds, for every declared expert, the key of its cell for every probe, `with_`
    the same for the probes `given` passages."""

    probes: Sequence[Probe]
    keys: Mapping[str, Sequence[str]]
    experts: Sequence[ExpertSpec]
    judge: ExpertSpec | None
    concurrency: int
    given: Sequence[ProbesWithPassages] = ()
    with_: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unsafe: bool = False


def _spec_of(registry: Registry, name: str, option: str) -> ExpertSpec:
    for spec in registry.experts:
        if spec.name == name:
            return spec
    declared = ", ".join(registry.expert_names)
    raise typer.BadParameter(f"{name!r} is no declared expert; declared: {declared}", param_hint=option)


def _journal(out: Path) -> Journal:
    """The journal in a folder, which must not hold quality data from elsewhere: this run would replace it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be the folder for the quality data: {error.strerror}") from None
    tables = (find_table(out, name) for name in ("prompts", "scores", "models"))
    if any(tables) and not (out / JOURNAL).exists():
        raise DataError(f"{out}: holds quality data that `coe score` did not write; choose another folder for --out")
    return Journal(out / JOURNAL)


# -------------------------------------------------------------------------------------------------------------- asking


async def _score(plan: _Plan, settings: Settings, journal: Journal) -> None:
    from coe.experts.http.client import Client
    from coe.experts.http.expert import HttpExpert

    missing = {spec.name: _missing(plan, spec, journal) for spec in plan.experts}
    wanted = [probe for column in missing.values() for probe in column.values()]
    if not wanted:
        return
    sandbox, patience, judge = Sandbox(unsafe=plan.unsafe), RetryLimits(), None
    if any(probe.checker == "code" for probe in wanted):
        await sandbox.check()
        if plan.unsafe:
            say_error("warning: code of experts runs without a sandbox (--unsafe)")
    async with Client() as session:
        specs = [*plan.experts, *([plan.judge] if plan.judge else [])]
        await _check_gateway(specs, settings, session)
        experts = {spec.name: HttpExpert(*_served(spec, settings), session=session) for spec in specs}
        if plan.judge:
            judge = Judge(experts[plan.judge.name], patience=patience, concurrency=plan.concurrency)
        columns = [Column(experts[name], probes) for name, probes in missing.items()]
        with _progress({name: len(probes) for name, probes in missing.items()}) as (advance, tell):
            run = Run(journal, sandbox, judge, patience, plan.concurrency, tell=tell, advance=advance)
            await score_columns(columns, run)


def _missing(plan: _Plan, spec: ExpertSpec, journal: Journal) -> dict[str, Probe]:
    probes = [*plan.probes, *(one.probe for one in plan.given)]
    keyed = zip((*plan.keys[spec.name], *plan.with_.get(spec.name, ())), probes, strict=True)
    return {key: probe for key, probe in keyed if key not in journal.scored}


async def _given(settings: Settings, registry: Registry, probes: Sequence[Probe]) -> list[ProbesWithPassages]:
    """The probes with what the declared store has for them."""
    from coe.runtime.active_state import check_router
    from coe.runtime.document_index import open_index

    index = open_index(settings, registry, check_router(settings)[1].folder)
    try:
        return await supplied(probes, registry.retrieval, retriever=index.store, encoder=index.encoder)
    finally:
        await index.store.aclose()


def _served(spec: ExpertSpec, settings: Settings) -> tuple[ExpertSpec, Endpoint]:
    """Where an expert is asked and what is added to the body there: the gateway adds what is declared by itself."""
    if spec.addresses:
        return spec, Endpoint(spec.addresses[0], spec.model)
    if spec.name in settings.endpoints:
        return spec, settings.endpoints[spec.name][0]
    key = SecretStr(settings.api_key) if settings.api_key else None
    bare = spec.model_copy(update={"system_prompt": None, "parameters": {}, "api_key": key})
    return bare, Endpoint(f"{_gateway(settings)}/v1", spec.name)


async def _check_gateway(specs: Sequence[ExpertSpec], settings: Settings, session: Client) -> None:
    """Raises ExpertUnavailable when the gateway is needed and nothing answers there."""
    from coe.experts.http.client import Target

    local = [spec.name for spec in specs if not spec.addresses and spec.name not in settings.endpoints]
    if not local:
        return
    try:
        (await session.send(Target(f"{_gateway(settings)}/health/live", {}, method="GET"))).close()
    except OSError:
        message = f"{', '.join(local)}: run locally, and nothing answers at {_gateway(settings)}; is `coe up` running?"
        raise ExpertUnavailable(message, expert=local[0]) from None


def _gateway(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.port}"


def _write(plan: _Plan, registry: Registry, journal: Journal, out: Path, *, benchmark: str) -> None:
    """All scores the journal knows for these probes, those of experts that were not asked this time too."""
    scores = [
        (probe.prompt_id, name, cell.score)
        for index, probe in enumerate(plan.probes)
        for name, keys in plan.keys.items()
        if (cell := journal.scored.get(keys[index])) is not None and cell.score is not None
    ]
    known = {name for _, name, _ in scores}
    experts = [spec for spec in registry.experts if spec.name in known]
    write_quality(out, benchmark=benchmark, probes=plan.probes, scores=scores, experts=experts)
    if plan.given:
        write_gains(out, _gains(plan, journal))


def _gains(plan: _Plan, journal: Journal) -> list[tuple[ProbesWithPassages, str, float, float]]:
    """Of every probe and expert that has both scores."""
    found = []
    for name, keys in plan.with_.items():
        for one, without, with_ in zip(plan.given, plan.keys[name], keys, strict=True):
            scores = [cell.score for key in (without, with_) if (cell := journal.scored.get(key)) is not None]
            known = [score for score in scores if score is not None]
            if len(known) == 2:
                found.append((one, name, known[0], known[1]))
    return found


def _with_passages(plan: _Plan, journal: Journal, missing: int) -> dict[str, Any]:
    """What the report says of the second half of a run, empty where there was none."""
    if not plan.given:
        return {}
    gains, asked = _gains(plan, journal), {spec.name for spec in plan.experts}
    lacking = sum(key not in journal.scored for name in asked for key in plan.with_[name])
    means = {}
    for name in sorted({name for _, name, _, _ in gains}):
        own = [(without, with_) for _, other, without, with_ in gains if other == name]
        means[name] = {"without": sum(a for a, _ in own) / len(own), "with": sum(b for _, b in own) / len(own)}
    return {"retrieval": means, "missing": missing + lacking}


# ------------------------------------------------------------------------------------------------------------- telling


@contextmanager
def _progress(missing: Mapping[str, int]) -> Iterator[tuple[Advance, Advance]]:
    """How to say that an expert finished a probe, and how to print a line meanwhile."""
    if not sys.stderr.isatty():
        yield (lambda _: None), say_error
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as bar:
        tasks = {name: bar.add_task(name, total=count) for name, count in missing.items()}
        yield (
            (lambda name: bar.advance(tasks[name])),
            lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True),
        )


def _tell(report: Mapping[str, Any]) -> None:
    say(f"{'expert':20} {'scored':>7} {'missing':>7} {'mean':>6} {'p50 ms':>8} {'tokens out':>10} {'cut':>5}")
    for name, column in report["experts"].items():
        average = "-" if column["mean"] is None else f"{column['mean']:.3f}"
        latency = "-" if column["latency_ms_p50"] is None else f"{column['latency_ms_p50']:.0f}"
        counts = f"{column['scored']:7} {column['missing']:7} {average:>6} {latency:>8}"
        say(f"{name:20} {counts} {column['output_tokens']:10} {column['cut']:5}")
    for name, column in report["experts"].items():
        if column["inconsistent"]:
            say(f"{name}: {column['inconsistent']} contradictory pairs of verdicts counted as ties")
        if column["missing"]:
            errors = ", ".join(f"{count} x {code}" for code, count in column["errors"].items()) or "not asked yet"
            say(f"{name}: {column['missing']} scores are missing ({errors}): {column['first_error'] or 'run again'}")
    for name, means in report.get("retrieval", {}).items():
        say(f"{name}: {means['without']:.3f} without passages, {means['with']:.3f} with; pairs in {GAINS}")
    state = (
        "stopped; run again to go on"
        if report["stopped"]
        else "run again to fill gaps"
        if report["missing"]
        else "complete"
    )
    say(f"{report['probes']} probes, quality data in {report['out']} ({state})")
