"""Runs the declared experts on probes, writes quality data and reports the run in numbers (`coe score`).

Every score is a cell of a journal, keyed by what it depends on, so an interrupted run continues where it stopped.
Recipes that write are scored like experts, under the name of their arm, by the code that serves them. External experts
are reached directly, local ones and those of litellm through the gateway. With passages, each probe is also scored as
the retrieval gate would send it. The pairs of scores go into a file that `coe plan` fits the gate on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

from pydantic import SecretStr

from coe.core import Expert
from coe.errors import DataError, ExpertUnavailable
from coe.measuring.gate_fit import Gain, ProbeWithPassages, add_passages, write_gains
from coe.measuring.probes import Probe
from coe.measuring.recorded_answers import ANSWERS, CALLS, GRADES, RetryLimits
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
from coe.measuring.tables import find_table, write_parquet
from coe.registry import ExpertSpec, RecipeSpec, Registry
from coe.settings import Endpoint, Settings
from coe.terminal import print_error, progress_bar

JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True)
class Scoring:
    """A run: what to score, and on which experts, chains and fuses.

    Of a cascade with a judge, the members of all steps but the last are scored, and their answers graded. Scores of the
    experts `again` that are older than the run, which `began` at that time (Unix seconds), are replaced.
    """

    registry: Registry
    probes: Sequence[Probe]
    with_passages: Sequence[ProbeWithPassages]
    experts: Sequence[ExpertSpec]
    judge: ExpertSpec | None
    concurrency: int
    recipes: Sequence[RecipeSpec] = ()
    again: Collection[str] = ()
    began: float = field(default_factory=time.time)

    @cached_property
    def keys(self) -> Mapping[str, Sequence[str]]:
        """The key of each probe's cell, for every declared expert, and every arm of a recipe that writes."""
        keys = {spec.name: cell_keys(self.probes, spec, self.judge) for spec in self.registry.experts}
        for one in self.registry.declared_recipes:
            if one.writes:
                members = [self.registry.expert(name) for name in one.members]
                keys[one.name] = recipe_keys(self.probes, one, members, self.judge)
        return keys

    @cached_property
    def passage_keys(self) -> Mapping[str, Sequence[str]]:
        """The keys of every declared expert on the probes `with_passages`."""
        extended = [one.probe for one in self.with_passages]
        return {spec.name: cell_keys(extended, spec, self.judge) for spec in self.registry.experts}

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
        since = self.began if name in self.again else 0.0
        return {
            key: probe
            for key, probe in keyed.items()
            if (cell := scored.get(key)) is None or cell.time < since or (kept and cell.text is None)
        }

    def gradings(self, recipe: RecipeSpec, journal: Journal) -> list[tuple[str, str, Probe | None]]:
        """The prompt, the member and the judge's request for every scored answer that a cascade has graded; without a
        request where there is nothing to grade."""
        if recipe.judge is None:
            return []
        judge = self.registry.expert(recipe.judge)
        return [
            (probe.prompt_id, name, grading_probe(probe, cell, judge))
            for name in recipe.graded_members
            for probe, key in zip(self.probes, self.keys[name], strict=True)
            if (cell := journal.scored.get(key)) is not None and cell.text is not None
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
        scored = journal.scored
        return [
            (one, name, scored[without].score, scored[with_].score)
            for name, keys in self.passage_keys.items()
            for one, without, with_ in zip(self.with_passages, self.keys[name], keys, strict=True)
            if without in scored and with_ in scored
        ]


def open_journal(folder: Path) -> Journal:
    """The journal in a folder. Raises DataError for a folder with other quality data, which a run would replace."""
    folder.mkdir(parents=True, exist_ok=True)
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


def run_scoring(scoring: Scoring, settings: Settings, journal: Journal, out: Path, *, benchmark: str) -> dict[str, Any]:
    """Score what is missing, write quality data into `out`, and return the report; Ctrl-C stops early."""
    stopped = False
    try:
        asyncio.run(_score_missing(scoring, settings, journal))
    except KeyboardInterrupt:
        stopped = True
    write_tables(scoring, journal, out, benchmark=benchmark)
    return score_report(scoring, journal) | {"out": str(out), "stopped": stopped}


async def _score_missing(scoring: Scoring, settings: Settings, journal: Journal) -> None:
    from coe.recipes.expert import writing_expert

    missing = {name: scoring.missing(name, journal) for name in scoring.columns}
    probes = [probe for column in missing.values() for probe in column.values()]
    if not probes and not scoring.missing_grades(journal):
        return
    sandbox = await checked_sandbox(probes)
    async with called_experts(scoring, settings) as experts:
        arms = {one.name: writing_expert(scoring.registry, one, experts) for one in scoring.recipes if one.writes}
        judge, kept = experts[scoring.judge.name] if scoring.judge else None, frozenset(scoring.graded)

        async def score(missing: Mapping[str, Mapping[str, Probe]]) -> None:
            total, done = max(1, sum(map(len, missing.values()))), itertools.count(1)
            columns = [ExpertColumn(arms.get(name) or experts[name], column) for name, column in missing.items()]
            with progress_bar("scoring") as show:

                def advance(name: str) -> None:
                    if show:
                        show(name, next(done) / total)

                run = ScoringRun(
                    journal, sandbox, judge, RetryLimits(), scoring.concurrency, print_error, advance, kept
                )
                await score_columns(columns, run)

        await score(missing)
        await score(scoring.missing_grades(journal))


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
    from coe.experts.http.client import Client, Target
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
            try:
                (await session.send(Target(f"{gateway}/health/live", {}, method="GET"))).close()
            except OSError:
                why = f"reached through the gateway, and nothing answers at {gateway}; is `coe up` running?"
                raise ExpertUnavailable(f"{', '.join(behind)}: {why}", expert=behind[0]) from None
        yield experts


def write_tables(scoring: Scoring, journal: Journal, out: Path, *, benchmark: str) -> None:
    """Write all scores and answers that the journal has for these probes, those of experts outside this run too."""
    registry = scoring.registry
    scores, answers, calls = (list[dict[str, Any]]() for _ in range(3))
    writing = {recipe.name: recipe.writing_digest for recipe in registry.declared_recipes if recipe.writes}

    def use(expert: str, given: int | None, written: int | None, latency: float | None) -> dict[str, Any]:
        cost = registry.expert(expert).prices.known_cost(given, written)
        return {"input_tokens": given, "output_tokens": written, "latency_ms": latency, "cost": cost}

    for (index, probe), (name, keys) in itertools.product(enumerate(scoring.probes), scoring.keys.items()):
        if (cell := journal.scored.get(keys[index])) is None:
            continue
        row: dict[str, Any] = {"prompt_id": probe.prompt_id, "model": name}
        if name not in writing:
            scores.append(row | {"score": cell.score, "time": cell.time or None})
            answer = {"answer": cell.answer, "output_chars": cell.output_chars}
            answers.append(row | answer | use(name, cell.input_tokens, cell.output_tokens, cell.latency_ms))
        for call in cell.calls:
            arm = {"prompt_id": probe.prompt_id, "arm": name, "writing": writing[name], "score": cell.score}
            used = use(call.expert, call.input_tokens, call.output_tokens, call.ms)
            calls.append(arm | {"step": call.step, "member": call.expert} | used)
    grades = {}
    for recipe in registry.declared_recipes:
        for prompt_id, name, asked in scoring.gradings(recipe, journal):
            graded = Cell("", prompt_id, name) if asked is None else journal.scored.get(asked.digest)
            if graded is not None and recipe.judge is not None:
                grade = None if graded.answer is None else float(graded.answer)
                row = {"prompt_id": prompt_id, "model": name, "judge": recipe.judge, "grade": grade}
                used = use(recipe.judge, graded.input_tokens, graded.output_tokens, graded.latency_ms)
                grades[prompt_id, name, recipe.judge] = row | used
    prompts = [{"prompt_id": one.prompt_id, "prompt": one.prompt, "category": one.category} for one in scoring.probes]
    sizes = {spec.name: spec.active_parameters_b for spec in registry.experts}
    models = [{"model": name, "active_b": sizes[name]} for name in dict.fromkeys(row["model"] for row in scores)]
    tables = {"prompts": prompts, "scores": scores, "models": models}
    tables |= {ANSWERS: answers, CALLS: calls, GRADES: list(grades.values())}
    for table, rows in tables.items():
        write_parquet(out / f"{table}.parquet", [{"benchmark": benchmark, **row} for row in rows])
    if scoring.with_passages:
        write_gains(out, scoring.gains(journal))


def score_report(scoring: Scoring, journal: Journal) -> dict[str, Any]:
    """`{probes, missing, experts: {name: {...}}}`, JSON-able; `missing` counts what another run requests, grades of
    judges too."""
    experts = {name: _column(scoring, name, journal) for name in scoring.columns}
    missing = sum(column["missing"] for column in experts.values())
    missing += sum(map(len, scoring.missing_grades(journal).values()))
    return {"probes": len(scoring.probes), "experts": experts, "missing": missing}


def _column(scoring: Scoring, name: str, journal: Journal) -> dict[str, Any]:
    missing, cells = scoring.missing(name, journal), list[Cell]()
    scores: dict[str, list[float]] = {}
    for probe, key in zip(scoring.probes, scoring.keys[name], strict=True):
        if (cell := journal.scored.get(key)) is not None and cell.score is not None:
            cells.append(cell)
            scores.setdefault(probe.category, []).append(cell.score)
    failed = [journal.failed[key] for key in missing if key in journal.failed]
    latencies = [cell.latency_ms for cell in cells if cell.latency_ms is not None]
    return {
        "scored": len(cells),
        "missing": len(missing),
        "mean": round(mean(itertools.chain(*scores.values())), 4) if cells else None,
        "categories": {name: {"n": len(own), "mean": round(mean(own), 4)} for name, own in sorted(scores.items())},
        "latency_ms_p50": round(median(latencies), 1) if latencies else None,
        "input_tokens": sum(cell.input_tokens or 0 for cell in cells),
        "output_tokens": sum(cell.output_tokens or 0 for cell in cells),
        "cut": sum(cell.cut for cell in cells),
        "errors": dict(Counter(cell.code for cell in failed)),
        "first_error": failed[0].error if failed else None,
    }
