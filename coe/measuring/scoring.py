"""Runs the declared experts on probes, writes quality data and reports the run in numbers (`coe score`).

Every score is a cell of a journal, keyed by what it depends on, so an interrupted run continues where it stopped.
Recipes that write are scored like experts, under the name of their arm, by the code that serves them. External experts
are reached directly, local ones and those of litellm through the gateway. With passages, each probe is also scored as
the retrieval gate would send it. The pairs of scores go into a file that `coe plan` fits the gate on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from coe.core import Expert
from coe.errors import DataError, ExpertUnavailable
from coe.measuring.answers import RetryLimits
from coe.measuring.grades import GRADES, grading_probe, write_grades
from coe.measuring.judge import Judge
from coe.measuring.passage_gain import Gain, ProbeWithPassages, add_passages, write_gains
from coe.measuring.probes.probes import Probe
from coe.measuring.quality import write_quality
from coe.measuring.recipe_answers import CALLS, write_recipe_answers
from coe.measuring.recorded_answers import write_answers
from coe.measuring.sandbox import Sandbox
from coe.measuring.scoring_run import (
    Cell,
    ExpertColumn,
    Journal,
    ScoringRun,
    cell_keys,
    recipe_keys,
    score_columns,
)
from coe.measuring.tables import find_table
from coe.registry import ExpertSpec, RecipeSpec, Registry
from coe.settings import Endpoint, Settings
from coe.terminal import print_error

if TYPE_CHECKING:
    from coe.experts.http.client import Client

JOURNAL_FILE = "journal.jsonl"

Report = Callable[[str], None]
Progress = Callable[[Mapping[str, int]], AbstractContextManager[tuple[Report, Report]]]
"""Maps the missing probes by expert to a context with two functions: one advances an expert, one prints a line."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A run: what to score, and on which experts, chains and fuses.

    `keys` holds, for every declared expert and arm of such a recipe, the key of each probe's cell. `passage_keys` are
    those of the experts on the probes `with_passages`. Of a cascade with a judge, the members of all steps but the last
    are scored, and their answers graded.
    """

    registry: Registry
    probes: Sequence[Probe]
    with_passages: Sequence[ProbeWithPassages]
    experts: Sequence[ExpertSpec]
    judge: ExpertSpec | None
    concurrency: int
    unsafe: bool
    recipes: Sequence[RecipeSpec] = ()
    keys: Mapping[str, Sequence[str]] = field(init=False)
    passage_keys: Mapping[str, Sequence[str]] = field(init=False)

    def __post_init__(self) -> None:
        extended = [one.probe for one in self.with_passages]
        single, judge = self.registry.experts, self.judge
        passage_keys = {spec.name: cell_keys(extended, spec, judge) for spec in single}
        keys = {spec.name: cell_keys(self.probes, spec, judge) for spec in single}
        for one in self.registry.declared_recipes:
            if one.writes:
                members = [self.registry.expert(name) for name in one.members]
                keys[one.name] = recipe_keys(self.probes, one, members, judge)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "passage_keys", passage_keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the experts and arms to score."""
        experts = dict.fromkeys((*(spec.name for spec in self.experts), *self.graded))
        return (*experts, *(recipe.name for recipe in self.recipes if recipe.writes))

    @property
    def graded(self) -> tuple[str, ...]:
        """The experts whose answers are graded in this run."""
        return tuple(dict.fromkeys(name for recipe in self.recipes for name in recipe.graded_members))

    def grading(self, recipe: RecipeSpec, journal: Journal) -> list[tuple[str, str, Probe | None]]:
        """The prompt, the member and the judge's request for every scored answer that a cascade has graded; without a
        request where there is nothing to grade."""
        assert recipe.judge is not None
        judge = self.registry.expert(recipe.judge)
        return [
            (probe.prompt_id, name, grading_probe(probe, cell, judge))
            for name in recipe.graded_members
            for probe, key in zip(self.probes, self.keys[name], strict=True)
            if (cell := journal.scored.get(key)) is not None and cell.text is not None
        ]

    def missing(self, name: str, journal: Journal) -> dict[str, Probe]:
        """The probes without a score of this expert or arm, by the key of their cell. Arms are scored without
        passages."""
        keys, extended = self.passage_keys.get(name, ()), [one.probe for one in self.with_passages]
        keyed = [*zip(self.keys[name], self.probes, strict=True), *zip(keys, extended if keys else (), strict=True)]
        kept = name in self.graded
        known = {key for key, cell in journal.scored.items() if not kept or cell.text is not None}
        return {key: probe for key, probe in keyed if key not in known}

    def gains(self, journal: Journal) -> list[Gain]:
        """The pairs of scores, without and with passages, of every probe and expert that has both."""
        found: list[Gain] = []
        for name, keys in self.passage_keys.items():
            for one, without, with_ in zip(self.with_passages, self.keys[name], keys, strict=True):
                cells = [journal.scored.get(key) for key in (without, with_)]
                scores = [cell.score for cell in cells if cell is not None and cell.score is not None]
                if len(scores) == 2:
                    found.append((one, name, scores[0], scores[1]))
        return found


def open_journal(folder: Path) -> Journal:
    """The journal in a folder. Raises DataError for a folder with other quality data, which a run would replace."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be the folder for the quality data: {error.strerror}") from None
    tables = (find_table(folder, name) for name in ("prompts", "scores", "answers", "models", CALLS, GRADES))
    if any(tables) and not (folder / JOURNAL_FILE).exists():
        raise DataError(f"{folder}: holds quality data that `coe score` did not write; choose another folder for --out")
    return Journal(folder / JOURNAL_FILE)


async def probes_with_passages(
    settings: Settings, registry: Registry, probes: Sequence[Probe]
) -> list[ProbeWithPassages]:
    """The probes with passages of the declared document store."""
    from coe.artifacts.active_state import check_router, open_index

    index = open_index(settings, registry, check_router(settings)[1].folder)
    try:
        return await add_passages(probes, registry.retrieval, retriever=index.store, encoder=index.encoder)
    finally:
        await index.store.aclose()


def run_scoring(
    scoring: Scoring, settings: Settings, journal: Journal, out: Path, *, benchmark: str, progress: Progress
) -> dict[str, Any]:
    """Score what is missing, write quality data into `out`, and return the report; Ctrl-C stops early."""
    requested = {name: scoring.keys[name] for name in scoring.columns}
    reused = {name: sum(key in journal.scored for key in keys) for name, keys in requested.items()}
    stopped = False
    try:
        asyncio.run(_score_missing(scoring, settings, journal, progress))
    except KeyboardInterrupt:
        stopped = True
    write_tables(scoring, journal, out, benchmark=benchmark)
    report = score_report(scoring.probes, requested, journal, reused=reused)
    report |= _passage_report(scoring, journal, report["missing"])
    report |= _grade_report(scoring, journal, report["missing"])
    return report | {"out": str(out), "stopped": stopped}


async def _score_missing(scoring: Scoring, settings: Settings, journal: Journal, progress: Progress) -> None:
    from coe.recipes.factory import writing_expert

    missing = {name: scoring.missing(name, journal) for name in scoring.columns}
    probes = [probe for column in missing.values() for probe in column.values()]
    if not probes and not _missing_grades(scoring, journal):
        return
    sandbox, limits, judge = await checked_sandbox(probes, unsafe=scoring.unsafe), RetryLimits(), None
    async with called_experts(scoring, settings) as experts:
        arms = {one.name: writing_expert(scoring.registry, one, experts) for one in scoring.recipes if one.writes}
        if scoring.judge:
            judge = Judge(experts[scoring.judge.name], limits=limits, concurrency=scoring.concurrency)
        columns = [ExpertColumn(arms.get(name) or experts[name], column) for name, column in missing.items()]
        with progress({name: len(column) for name, column in missing.items()}) as (advance, report):
            kept = frozenset(scoring.graded)
            run = ScoringRun(journal, sandbox, judge, limits, scoring.concurrency, report, advance, kept)
            await score_columns(columns, run)
        grading = _missing_grades(scoring, journal)
        with progress({name: len(column) for name, column in grading.items()}) as (advance, report):
            run = replace(run, report=report, advance=advance, kept=frozenset())
            await score_columns([ExpertColumn(experts[name], column) for name, column in grading.items()], run)


async def checked_sandbox(probes: Sequence[Probe], *, unsafe: bool) -> Sandbox:
    """The sandbox, checked if one of the probes runs code."""
    sandbox = Sandbox(unsafe=unsafe)
    if any(probe.checker == "code" for probe in probes):
        await sandbox.check()
        if unsafe:
            print_error(
                "warning: code of experts runs without bubblewrap (--unsafe): nothing but limits on time, memory, "
                "files and processes holds it"
            )
    return sandbox


@asynccontextmanager
async def called_experts(
    scoring: Scoring, settings: Settings, *, sends_once: bool = False
) -> AsyncIterator[dict[str, Expert]]:
    """The experts that a run calls, by name. Raises ExpertUnavailable where the gateway is needed and not there.

    With `sends_once`, connections are not reused: a request on one that breaks may be sent twice.
    """
    from coe.experts.http.client import Client
    from coe.experts.http.expert import HttpExpert

    async with Client(reuses=not sends_once) as session:
        specs = _called(scoring)
        await _check_gateway(specs, settings, session)
        yield {spec.name: HttpExpert(*_endpoint(spec, settings), session=session) for spec in specs}


def _missing_grades(scoring: Scoring, journal: Journal) -> dict[str, dict[str, Probe]]:
    """The judges' requests that have no grade yet, by judge and by the key of their cell."""
    missing: dict[str, dict[str, Probe]] = {}
    for recipe in scoring.recipes:
        if recipe.judge is not None:
            probes = [probe for _, _, probe in scoring.grading(recipe, journal) if probe is not None]
            found = {probe.digest: probe for probe in probes if probe.digest not in journal.scored}
            missing.setdefault(recipe.judge, {}).update(found)
    return {name: column for name, column in missing.items() if column}


def _called(scoring: Scoring) -> list[ExpertSpec]:
    """The experts that a run calls: those to score, the members of recipes, and the judges."""
    members = {name for recipe in scoring.recipes if recipe.writes for name in recipe.members}
    judges = {recipe.judge for recipe in scoring.recipes if recipe.judge is not None}
    names = (
        {spec.name for spec in scoring.experts}
        | members
        | judges
        | set(scoring.graded)
        | ({scoring.judge.name} if scoring.judge else set())
    )
    return [spec for spec in scoring.registry.experts if spec.name in names]


def _endpoint(spec: ExpertSpec, settings: Settings) -> tuple[ExpertSpec, Endpoint]:
    """An expert's address and the fields to add to its requests; the gateway adds the declared ones itself."""
    if _is_external(spec):
        return spec, Endpoint(spec.addresses[0], spec.model)
    if spec.name in settings.endpoints:
        return spec, settings.endpoints[spec.name][0]
    key = SecretStr(settings.api_key) if settings.api_key else None
    bare = spec.model_copy(update={"system_prompt": None, "parameters": {}, "api_key": key})
    return bare, Endpoint(f"{_gateway_url(settings)}/v1", spec.name)


def _is_external(spec: ExpertSpec) -> bool:
    """True if the server of an expert speaks an API that CoE supports. False for litellm, which translates."""
    return bool(spec.addresses) and spec.runtime != "litellm"


async def _check_gateway(specs: Sequence[ExpertSpec], settings: Settings, session: Client) -> None:
    """Raises ExpertUnavailable where the gateway is needed and does not answer."""
    from coe.experts.http.client import Target

    behind = [spec.name for spec in specs if not _is_external(spec) and spec.name not in settings.endpoints]
    if not behind:
        return
    url = _gateway_url(settings)
    try:
        (await session.send(Target(f"{url}/health/live", {}, method="GET"))).close()
    except OSError:
        message = (
            f"{', '.join(behind)}: reached through the gateway, and nothing answers at {url}; is `coe up` running?"
        )
        raise ExpertUnavailable(message, expert=behind[0]) from None


def _gateway_url(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.port}"


def write_tables(scoring: Scoring, journal: Journal, out: Path, *, benchmark: str) -> None:
    """Write all scores and answers that the journal has for these probes, those of experts outside this run too."""
    arms = {recipe.name: recipe for recipe in scoring.registry.declared_recipes if recipe.writes}
    cells = [
        (probe.prompt_id, name, cell)
        for index, probe in enumerate(scoring.probes)
        for name, keys in scoring.keys.items()
        if name not in arms and (cell := journal.scored.get(keys[index])) is not None
    ]
    scored = {name for _, name, _ in cells}
    scores = [(prompt_id, name, cell.score) for prompt_id, name, cell in cells if cell.score is not None]
    experts = [spec for spec in scoring.registry.experts if spec.name in scored]
    write_quality(out, benchmark=benchmark, probes=scoring.probes, scores=scores, experts=experts)
    prices = {spec.name: spec.prices for spec in scoring.registry.experts}
    write_answers(out, benchmark=benchmark, cells=cells, prices=prices)
    written = [
        (probe.prompt_id, arm, recipe.writing_digest, cell)
        for arm, recipe in arms.items()
        for probe, key in zip(scoring.probes, scoring.keys[arm], strict=True)
        if (cell := journal.scored.get(key)) is not None and cell.score is not None
    ]
    write_recipe_answers(out, benchmark=benchmark, answers=written, prices=prices)
    grades = {
        (prompt_id, name, recipe.judge): cell
        for recipe in scoring.registry.declared_recipes
        if recipe.judge is not None
        for prompt_id, name, probe in scoring.grading(recipe, journal)
        for cell in (None if probe is None else journal.scored.get(probe.digest),)
        if probe is None or cell is not None
    }
    write_grades(out, benchmark=benchmark, cells=grades, prices=prices)
    if scoring.with_passages:
        write_gains(out, scoring.gains(journal))


def _passage_report(scoring: Scoring, journal: Journal, missing: int) -> dict[str, Any]:
    """The part of the report about passages, with the missing scores of both parts; empty without passages."""
    if not scoring.with_passages:
        return {}
    gains = scoring.gains(journal)
    lacking = sum(key not in journal.scored for spec in scoring.experts for key in scoring.passage_keys[spec.name])
    means = {}
    for name in sorted({name for _, name, _, _ in gains}):
        own = [(without, with_) for _, other, without, with_ in gains if other == name]
        means[name] = {"without": sum(a for a, _ in own) / len(own), "with": sum(b for _, b in own) / len(own)}
    return {"retrieval": means, "missing": missing + lacking}


def _grade_report(scoring: Scoring, journal: Journal, missing: int) -> dict[str, Any]:
    """The part of the report about grades: by cascade the answers with a grade, those whose judge gave none, and the
    missing ones; empty without a cascade with a judge."""
    found: dict[str, dict[str, int]] = {}
    for recipe in scoring.recipes:
        if recipe.judge is None:
            continue
        grading = [probe for _, _, probe in scoring.grading(recipe, journal)]
        cells = [None if probe is None else journal.scored.get(probe.digest) for probe in grading]
        graded = sum(cell is not None and cell.answer is not None for cell in cells)
        done = sum(probe is None or cell is not None for probe, cell in zip(grading, cells, strict=True))
        expected = len(recipe.graded_members) * len(scoring.probes)
        found[recipe.name] = {"graded": graded, "ungraded": done - graded, "missing": expected - done}
    lacking = sum(one["missing"] for one in found.values())
    return {"grades": found, "missing": missing + lacking} if found else {}


Keys = Mapping[str, Sequence[str]]
"""Maps each expert to the keys of its cells, in the order of the probes."""


def score_report(probes: Sequence[Probe], keys: Keys, journal: Journal, *, reused: Mapping[str, int]) -> dict[str, Any]:
    """`{probes, missing, experts: {name: {...}}}`, JSON-able. `reused` counts scores of earlier runs."""
    experts = {name: _column(probes, column, journal) | {"reused": reused[name]} for name, column in keys.items()}
    return {
        "probes": len(probes),
        "missing": sum(column["missing"] for column in experts.values()),
        "experts": experts,
    }


def _column(probes: Sequence[Probe], keys: Sequence[str], journal: Journal) -> dict[str, Any]:
    found = [(probe, journal.scored[key]) for probe, key in zip(probes, keys, strict=True) if key in journal.scored]
    failed = [journal.failed[key] for key in keys if key in journal.failed]
    cells = [cell for _, cell in found]
    return {
        "scored": len(cells),
        "missing": len(keys) - len(cells),
        "mean": _average(mean, [cell.score for cell in cells]),
        "categories": _grouped(found, lambda probe: probe.category),
        "difficulties": _grouped(found, lambda probe: probe.difficulty),
        "latency_ms_p50": _average(median, [cell.latency_ms for cell in cells], 1),
        "input_tokens": sum(cell.input_tokens or 0 for cell in cells),
        "output_tokens": sum(cell.output_tokens or 0 for cell in cells),
        "cut": sum(cell.cut for cell in cells),
        "inconsistent": sum(not cell.consistent for cell in cells),
        "errors": dict(Counter(cell.code for cell in failed)),
        "first_error": failed[0].error if failed else None,
    }


def _grouped(found: Sequence[tuple[Probe, Cell]], name_of: Callable[[Probe], str]) -> dict[str, dict[str, Any]]:
    """Return the number and the mean of the scores by a name of the probes; those without a name do not count."""
    groups: dict[str, list[float | None]] = {}
    for probe, cell in found:
        if name := name_of(probe):
            groups.setdefault(name, []).append(cell.score)
    return {name: {"n": len(scores), "mean": _average(mean, scores)} for name, scores in sorted(groups.items())}


def _average(of: Callable[[list[float]], float], values: Sequence[float | None], digits: int = 4) -> float | None:
    known = [value for value in values if value is not None]
    return round(of(known), digits) if known else None
