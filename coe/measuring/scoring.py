"""Runs the declared experts on probes, writes quality data and reports the run in numbers (`coe score`).

Every score is a cell of a journal, keyed by what it depends on, so an interrupted run continues where it stopped.
Recipes that write are scored like experts, under the name of their arm, by the code that serves them. External experts
are reached directly, local ones and those of litellm through the gateway. With passages, each probe is also scored as
the retrieval gate would send it. The pairs of scores go into a file that `coe plan` fits the gate on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from coe.core import Expert
from coe.errors import DataError, ExpertUnavailable
from coe.measuring.answers import RetryLimits
from coe.measuring.passage_gain import Gain, ProbeWithPassages, add_passages, write_gains
from coe.measuring.probes.probes import Probe
from coe.measuring.quality import write_quality
from coe.measuring.recorded_answers import ANSWERS, CALLS, GRADES, write_calls
from coe.measuring.sandbox import Sandbox
from coe.measuring.scoring_run import (
    Cell,
    ExpertColumn,
    Journal,
    ScoringRun,
    cell_keys,
    grading_probe,
    recipe_keys,
    score_columns,
)
from coe.measuring.tables import find_table
from coe.records.record import RecipeCall
from coe.registry import ExpertSpec, Prices, RecipeSpec, Registry
from coe.settings import Endpoint, Settings

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
    recipes: Sequence[RecipeSpec] = ()
    keys: Mapping[str, Sequence[str]] = field(init=False)
    passage_keys: Mapping[str, Sequence[str]] = field(init=False)

    def __post_init__(self) -> None:
        extended, single = [one.probe for one in self.with_passages], self.registry.experts
        keys = {spec.name: cell_keys(self.probes, spec, self.judge) for spec in single}
        for one in self.registry.declared_recipes:
            if one.writes:
                members = [self.registry.expert(name) for name in one.members]
                keys[one.name] = recipe_keys(self.probes, one, members, self.judge)
        object.__setattr__(self, "keys", keys)
        passage_keys = {spec.name: cell_keys(extended, spec, self.judge) for spec in single}
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

    @property
    def called(self) -> list[ExpertSpec]:
        """The experts that a run calls: those to score, the members of recipes, and the judges."""
        names = {*(spec.name for spec in self.experts), *self.graded, *(recipe.judge for recipe in self.recipes)}
        names |= {name for recipe in self.recipes if recipe.writes for name in recipe.members}
        return [spec for spec in self.registry.experts if spec.name in names or spec == self.judge]

    def missing(self, name: str, journal: Journal) -> dict[str, Probe]:
        """The probes without a score of this expert or arm, by the key of their cell. Arms are scored without
        passages."""
        keyed = dict(zip(self.keys[name], self.probes, strict=True))
        keyed |= zip(self.passage_keys.get(name, ()), (one.probe for one in self.with_passages), strict=False)
        kept, scored = name in self.graded, journal.scored
        return {key: probe for key, probe in keyed.items() if key not in scored or (kept and scored[key].text is None)}

    def gradings(self, recipe: RecipeSpec, journal: Journal) -> list[tuple[str, str, Probe | None]]:
        """The prompt, the member and the judge's request for every scored answer that a cascade has graded; without a
        request where there is nothing to grade."""
        judge = self.registry.expert(recipe.judge) if recipe.judge else None
        return [
            (probe.prompt_id, name, grading_probe(probe, cell, judge))
            for name in (recipe.graded_members if judge else ())
            for probe, key in zip(self.probes, self.keys[name], strict=True)
            if judge and (cell := journal.scored.get(key)) is not None and cell.text is not None
        ]

    def missing_grades(self, journal: Journal) -> dict[str, dict[str, Probe]]:
        """The judges' requests that have no grade yet, by judge and by the key of their cell."""
        missing: dict[str, dict[str, Probe]] = {}
        for recipe in self.recipes:
            for _, _, probe in self.gradings(recipe, journal):
                if probe is not None and probe.digest not in journal.scored:
                    missing.setdefault(recipe.judge or "", {})[probe.digest] = probe
        return missing

    def gains(self, journal: Journal) -> list[Gain]:
        """The pairs of scores, without and with passages, of every probe and expert that has both."""
        found: list[Gain] = []
        for name, keys in self.passage_keys.items():
            for one, without, with_ in zip(self.with_passages, self.keys[name], keys, strict=True):
                scores = [cell.score for key in (without, with_) if (cell := journal.scored.get(key)) is not None]
                if len(scores) == 2 and scores[0] is not None and scores[1] is not None:
                    found.append((one, name, scores[0], scores[1]))
        return found


def open_journal(folder: Path) -> Journal:
    """The journal in a folder. Raises DataError for a folder with other quality data, which a run would replace."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be the folder for the quality data: {error.strerror}") from None
    tables = (find_table(folder, name) for name in ("prompts", "scores", "models", ANSWERS, CALLS, GRADES))
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
    reused = {name: sum(key in journal.scored for key in scoring.keys[name]) for name in scoring.columns}
    stopped = False
    try:
        asyncio.run(_score_missing(scoring, settings, journal, progress))
    except KeyboardInterrupt:
        stopped = True
    write_tables(scoring, journal, out, benchmark=benchmark)
    return score_report(scoring, journal, reused=reused) | {"out": str(out), "stopped": stopped}


async def _score_missing(scoring: Scoring, settings: Settings, journal: Journal, progress: Progress) -> None:
    from coe.recipes.factory import writing_expert

    missing = {name: scoring.missing(name, journal) for name in scoring.columns}
    probes = [probe for column in missing.values() for probe in column.values()]
    if not probes and not scoring.missing_grades(journal):
        return
    sandbox = await checked_sandbox(probes)
    async with called_experts(scoring, settings) as experts:
        arms = {one.name: writing_expert(scoring.registry, one, experts) for one in scoring.recipes if one.writes}
        judge, kept = experts[scoring.judge.name] if scoring.judge else None, frozenset(scoring.graded)

        async def score(missing: Mapping[str, Mapping[str, Probe]], kept: frozenset[str]) -> None:
            columns = [ExpertColumn(arms.get(name) or experts[name], column) for name, column in missing.items()]
            with progress({name: len(column) for name, column in missing.items()}) as (advance, report):
                limits = RetryLimits()
                run = ScoringRun(journal, sandbox, judge, limits, scoring.concurrency, report, advance, kept)
                await score_columns(columns, run)

        await score(missing, kept)
        await score(scoring.missing_grades(journal), frozenset())


async def checked_sandbox(probes: Sequence[Probe]) -> Sandbox:
    """The sandbox, checked if one of the probes runs code."""
    sandbox = Sandbox()
    if any(probe.checker == "code" for probe in probes):
        await sandbox.check()
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

    gateway, key = f"http://{settings.host}:{settings.port}", SecretStr(settings.api_key) if settings.api_key else None
    async with Client(reuses=not sends_once) as session:
        experts: dict[str, Expert] = {}
        behind = []
        for spec in scoring.called:
            if spec.addresses and spec.runtime != "litellm":
                endpoint = Endpoint(spec.addresses[0], spec.model)
            elif spec.name in settings.endpoints:
                endpoint = settings.endpoints[spec.name][0]
            else:  # the gateway adds the declared fields itself
                spec = spec.model_copy(update={"system_prompt": None, "parameters": {}, "api_key": key})
                endpoint = Endpoint(f"{gateway}/v1", spec.name)
                behind.append(spec.name)
            experts[spec.name] = HttpExpert(spec, endpoint, session=session)
        if behind:
            await _check_gateway(gateway, behind, session)
        yield experts


async def _check_gateway(url: str, behind: Sequence[str], session: Client) -> None:
    """Raises ExpertUnavailable if the gateway does not answer, which the experts `behind` it need."""
    from coe.experts.http.client import Target

    try:
        (await session.send(Target(f"{url}/health/live", {}, method="GET"))).close()
    except OSError:
        message = (
            f"{', '.join(behind)}: reached through the gateway, and nothing answers at {url}; is `coe up` running?"
        )
        raise ExpertUnavailable(message, expert=behind[0]) from None


def write_tables(scoring: Scoring, journal: Journal, out: Path, *, benchmark: str) -> None:
    """Write all scores and answers that the journal has for these probes, those of experts outside this run too."""
    registry, scored = scoring.registry, journal.scored
    prices = {spec.name: spec.prices for spec in registry.experts}
    arms = [recipe for recipe in registry.declared_recipes if recipe.writes]
    cells = [
        (probe, name, scored[keys[index]])
        for index, probe in enumerate(scoring.probes)
        for name, keys in scoring.keys.items()
        if keys[index] in scored
    ]
    single = [(probe, name, cell) for probe, name, cell in cells if name in prices]
    scores = [(probe.prompt_id, name, cell.score) for probe, name, cell in single if cell.score is not None]
    names = {name for _, name, _ in single}
    experts = [spec for spec in registry.experts if spec.name in names]
    write_quality(out, benchmark=benchmark, probes=scoring.probes, scores=scores, experts=experts)
    answers = (
        {"prompt_id": probe.prompt_id, "model": name, "answer": cell.answer, "output_chars": cell.output_chars}
        | _use(cell, prices[name])
        for probe, name, cell in single
    )
    write_calls(out, ANSWERS, answers, benchmark=benchmark)
    calls = (
        {"prompt_id": probe.prompt_id, "arm": arm.name, "writing": arm.writing_digest, "score": cell.score}
        | {"step": call.step, "member": call.expert}
        | _use(call, prices[call.expert])
        for arm in arms
        for probe, name, cell in cells
        if name == arm.name
        for call in cell.calls
    )
    write_calls(out, CALLS, calls, benchmark=benchmark)
    write_calls(out, GRADES, _grades(scoring, journal, prices), benchmark=benchmark)
    if scoring.with_passages:
        write_gains(out, scoring.gains(journal))


def _use(call: Cell | RecipeCall, prices: Prices) -> dict[str, Any]:
    """The tokens, time and cost of a call as columns."""
    given, written = call.input_tokens, call.output_tokens
    latency = call.ms if isinstance(call, RecipeCall) else call.latency_ms
    cost = prices.known_cost(given, written)
    return {"input_tokens": given, "output_tokens": written, "latency_ms": latency, "cost": cost}


def _grades(scoring: Scoring, journal: Journal, prices: Mapping[str, Prices]) -> Iterable[dict[str, Any]]:
    """The grades of all declared cascades with a judge, a row for each answer; empty where it is not graded."""
    rows = {}
    for recipe in scoring.registry.declared_recipes:
        for prompt_id, name, probe in scoring.gradings(recipe, journal):
            cell = Cell("", prompt_id, name) if probe is None else journal.scored.get(probe.digest)
            if cell is not None and recipe.judge is not None:
                grade = None if cell.answer is None else float(cell.answer)
                row = {"prompt_id": prompt_id, "model": name, "judge": recipe.judge, "grade": grade}
                rows[prompt_id, name, recipe.judge] = row | _use(cell, prices[recipe.judge])
    return rows.values()


def score_report(scoring: Scoring, journal: Journal, *, reused: Mapping[str, int]) -> dict[str, Any]:
    """`{probes, missing, experts: {name: {...}}}`, JSON-able; with passages `retrieval`, the mean scores without and
    with them, and of cascades with a judge `grades`. `reused` counts scores of earlier runs."""
    experts = {name: _column(scoring, name, journal) | {"reused": count} for name, count in reused.items()}
    missing = sum(column["missing"] for column in experts.values())
    report: dict[str, Any] = {"probes": len(scoring.probes), "experts": experts}
    if scoring.with_passages:
        pairs: dict[str, list[tuple[float, float]]] = {}
        for _, name, without, with_ in scoring.gains(journal):
            pairs.setdefault(name, []).append((without, with_))
        means = {name: [mean(scores) for scores in zip(*found, strict=True)] for name, found in sorted(pairs.items())}
        report["retrieval"] = {name: {"without": both[0], "with": both[1]} for name, both in means.items()}
        keys = (key for spec in scoring.experts for key in scoring.passage_keys[spec.name])
        missing += sum(key not in journal.scored for key in keys)
    if judged := [recipe for recipe in scoring.recipes if recipe.judge is not None]:
        report["grades"] = {recipe.name: _graded(scoring, recipe, journal) for recipe in judged}
        missing += sum(counts["missing"] for counts in report["grades"].values())
    return report | {"missing": missing}


def _graded(scoring: Scoring, recipe: RecipeSpec, journal: Journal) -> dict[str, int]:
    """The answers with a grade, those whose judge gave none, and the missing ones."""
    gradings = [probe for _, _, probe in scoring.gradings(recipe, journal)]
    cells = [journal.scored.get(probe.digest) for probe in gradings if probe is not None]
    graded = sum(cell is not None and cell.answer is not None for cell in cells)
    done = len(gradings) - cells.count(None)
    return {
        "graded": graded,
        "ungraded": done - graded,
        "missing": len(recipe.graded_members) * len(scoring.probes) - done,
    }


def _column(scoring: Scoring, name: str, journal: Journal) -> dict[str, Any]:
    keys = scoring.keys[name]
    found = [
        (probe, cell) for probe, key in zip(scoring.probes, keys, strict=True) if (cell := journal.scored.get(key))
    ]
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
