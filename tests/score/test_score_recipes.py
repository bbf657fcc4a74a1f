"""`coe score --recipe`: chains and fuses are scored by real calls, journalled, resumed, and written for the planner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from coe.cli import app
from coe.errors import ExpertRejected, ExpertUnavailable
from coe.measuring.quality import read_quality
from coe.measuring.recorded_answers import RetryLimits, read_grades, read_recipe_answers, request_answer
from coe.measuring.scoring_run import recipe_keys
from coe.planning.assignment import Assignment
from coe.planning.plan import Drop
from coe.recipes.expert import writing_expert
from coe.registry import Registry, load
from coe.reports.alarms import degradation_alarms
from coe.reports.degradation import Degradation
from tests.fakes import registry_of
from tests.score.answering import AnsweringExpert, AnsweringServer, probe_of

pytestmark = pytest.mark.anyio
COUNT = 12
PROBES = [
    {"id": f"q{n}", "prompt": f"What is {n} + 1?", "category": "math", "checker": "numeric", "reference": n + 1}
    for n in range(COUNT)
]
LIMITS = RetryLimits(attempts=3, pause_seconds=0)


def adds(text: str) -> str:
    """The sum, if the member is asked for it alone; the writer sees the answers of the panel too."""
    right = str(int(text.split()[2]) + 1)
    return f"After reading: {right}" if "<answer-2 " in text else right


def referee(text: str) -> str:
    """A grade, but none for the answer 5."""
    return "I cannot tell" if "\n5\n" in text else "9"


@dataclass
class Scoring:
    server: AnsweringServer
    folder: Path

    def declare(
        self, recipes: str = "[{name: council, fuse: [small, large], by: large}, {name: v, vote: [small, large]}]"
    ) -> None:
        external = f"runtime: external, base_url: 'http://127.0.0.1:{self.server.port}/v1'"
        (self.folder / "experts.yaml").write_text(
            "version: 1\ncategories: [{name: math, description: m}, {name: general, description: g}]\n"
            f"experts: [{{name: small, model: m-small, {external}, prices: {{input: 1, output: 2}}}}, "
            f"{{name: large, model: m-large, {external}, prices: {{input: 10, output: 20}}}}, "
            f"{{name: referee, model: m-referee, {external}}}]\n"
            f"assignment: {{general: small}}\nrecipes: {recipes}\n"
        )

    @property
    def registry(self) -> Registry:
        return load(self.folder / "experts.yaml", environ={})

    async def run(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, report and standard error of the command, in a thread: it has an event loop of its own."""
        options = ("--out", str(self.folder / "out"), "--config", str(self.folder / "experts.yaml"), "--json")
        command = ["score", str(self.folder / "probes.jsonl"), *options, *words]
        found = await asyncio.to_thread(CliRunner().invoke, app, command)
        return found.exit_code, json.loads(found.stdout or "{}"), found.stderr

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = parquet.read_table(self.folder / "out" / "recipe_calls.parquet").to_pylist()
        return found


@pytest.fixture
async def scoring(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Scoring]:
    async with AnsweringServer({"m-small": adds, "m-large": adds, "m-referee": adds}).running() as server:
        found = Scoring(server, tmp_path)
        found.declare()
        (tmp_path / "probes.jsonl").write_text("".join(f"{json.dumps(probe)}\n" for probe in PROBES))
        yield found


async def test_a_fuse_is_scored_with_the_tokens_and_time_of_every_call(scoring: Scoring) -> None:
    code, report, output = await scoring.run("--recipe", "council")
    assert (code, report["missing"], output) == (0, 0, "")
    assert list(report["experts"]) == ["council"]
    column = report["experts"]["council"]
    assert (column["mean"], column["scored"]) == (1.0, COUNT)
    assert (column["input_tokens"], column["output_tokens"]) == (COUNT * 9, COUNT * 15)
    assert len(scoring.server.bodies) == 3 * COUNT
    rows = scoring.rows()
    assert len(rows) == 3 * COUNT
    assert all(row.pop("latency_ms") > 0 for row in rows)
    (writing,) = {row.pop("writing") for row in rows}
    assert writing == scoring.registry.arm("council").writing_digest  # type: ignore[union-attr]
    shared = {"benchmark": "probes", "prompt_id": "q0", "arm": "council", "score": 1.0}
    tokens = {"input_tokens": 3, "output_tokens": 5}
    assert rows[:3] == [
        {**shared, "step": 0, "member": "small", **tokens, "cost": pytest.approx(13e-6)},
        {**shared, "step": 0, "member": "large", **tokens, "cost": pytest.approx(130e-6)},
        {**shared, "step": 1, "member": "large", **tokens, "cost": pytest.approx(130e-6)},
    ]


async def test_the_planner_reads_it_beside_the_scores_of_the_experts(scoring: Scoring) -> None:
    assert (await scoring.run())[0] == 0
    assert not (scoring.folder / "out" / "recipe_calls.parquet").exists()
    assert (await scoring.run("--recipe", "council"))[0] == 0
    quality = read_quality(scoring.folder / "out")
    assert quality.models == ("large", "referee", "small")
    arms = [arm for arm in scoring.registry.recipe_arms if arm.writing_digest]
    measured = read_recipe_answers(scoring.folder / "out", quality, arms)["council"]
    assert measured.scores.tolist() == [1.0] * COUNT
    assert measured.uses["output_tokens"].tolist() == [[5.0, 5.0, 5.0]] * COUNT


@pytest.mark.parametrize(("recipe", "calls"), [("council", 5 * COUNT), ("v", 2 * COUNT)])
async def test_a_recipe_that_an_alarm_names_is_scored_again_with_its_members(
    scoring: Scoring, recipe: str, calls: int
) -> None:
    assert (await scoring.run("--recipe", "council", "--expert", "small", "--expert", "large"))[0] == 0
    scoring.server.bodies.clear()
    quality = np.array([[0.5, 0.9]])
    plan = Assignment(("math",), ("small", recipe), quality, 0 * quality, (recipe,), ("small", recipe), {})
    worse = Degradation(recipe, 0.0, 0.01, (Drop("math", 0.9, 0.4, 30),))
    (alarm,) = degradation_alarms([worse], {}, plan, scores="out")
    words = alarm.command.removesuffix(", then coe plan out").split()
    assert words[:2] + words[-2:] == ["coe", "score", "--out", "out"]
    code, report, _ = await scoring.run(*words[2:-2])
    assert (code, report["missing"], len(scoring.server.bodies)) == (0, 0, calls)


async def test_a_stopped_run_continues_and_a_changed_instruction_is_scored_again(scoring: Scoring) -> None:
    await scoring.run("--recipe", "council")
    journal = scoring.folder / "out" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:5]))
    scoring.server.bodies.clear()
    code, report, _ = await scoring.run("--recipe", "council")
    assert (code, report["missing"], len(scoring.server.bodies)) == (0, 0, 3 * (COUNT - 5))
    assert len(scoring.rows()) == 3 * COUNT
    scoring.declare("[{name: council, fuse: [small, large], by: large, instruction: Say it.}]")
    scoring.server.bodies.clear()
    await scoring.run("--recipe", "council")
    assert len(scoring.server.bodies) == 3 * COUNT
    assert scoring.server.bodies[-1]["messages"][-1]["content"].endswith("Say it.")
    assert len(scoring.rows()) == 3 * COUNT


@pytest.mark.parametrize(
    ("name", "message"),
    [("counsel", "is not a declared recipe; declared: council, v"), ("v", "compares answers, so `coe plan` prices it")],
)
async def test_a_wrong_recipe_is_refused_before_any_call(scoring: Scoring, name: str, message: str) -> None:
    code, _, output = await scoring.run("--recipe", name)
    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())
    assert scoring.server.bodies == []


async def test_the_judge_of_a_cascade_grades_the_answers_of_all_members_but_the_last(scoring: Scoring) -> None:
    scoring.server.models["m-referee"] = referee
    scoring.declare("[{name: graded, cascade: [small, large], signal: judge, judge: referee}]")
    assert (await scoring.run())[0] == 0  # the scores of the experts, without the text of their answers
    scoring.server.bodies.clear()
    code, report, output = await scoring.run("--recipe", "graded")
    assert (code, report["missing"], output) == (0, 0, "")
    asked = [body for body in scoring.server.bodies if body["model"] == "m-referee"]
    assert [body["model"] for body in scoring.server.bodies].count("m-small") == COUNT
    assert len(asked) == COUNT
    assert {(body["max_tokens"], body["stream"]) for body in asked} == {(16, False)}
    rows = parquet.read_table(scoring.folder / "out" / "grades.parquet").to_pylist()
    assert rows[3].pop("latency_ms") > 0
    assert rows[3] == {
        "benchmark": "probes",
        "prompt_id": "q3",
        "model": "small",
        "judge": "referee",
        "grade": 9.0,
        "input_tokens": 3,
        "output_tokens": 5,
        "cost": 0.0,
    }
    found = read_grades(scoring.folder / "out", read_quality(scoring.folder / "out"), ["referee", "other"])
    assert list(found) == ["referee"]
    assert found["referee"].recorded.sum() == COUNT
    assert np.isfinite(found["referee"].grades).sum() == COUNT - 1
    assert found["referee"].uses["output_tokens"] == 5
    scoring.server.bodies.clear()
    await scoring.run("--recipe", "graded")
    assert scoring.server.bodies == []


async def test_grades_that_a_judge_fails_to_give_are_missing_and_asked_again(scoring: Scoring) -> None:
    scoring.server.models["m-referee"] = lambda _: 400
    scoring.declare("[{name: graded, cascade: [small, large], signal: judge, judge: referee}]")
    code, report, output = await scoring.run("--recipe", "graded")
    assert (code, report["missing"]) == (1, COUNT)
    assert "referee: probe q" in output
    assert not (scoring.folder / "out" / "grades.parquet").exists()
    scoring.server.models["m-referee"] = referee
    code, report, _ = await scoring.run("--recipe", "graded")
    assert (code, report["missing"]) == (0, 0)
    assert len(parquet.read_table(scoring.folder / "out" / "grades.parquet")) == COUNT


# ------------------------------------------------------------------------------------------------------- in process

DECLARED = [{"name": "polished", "chain": ["coder", "painter"]}]


def polished(coder: AnsweringExpert, painter: AnsweringExpert) -> Any:
    registry = registry_of(recipes=DECLARED)
    return writing_expert(registry, registry.declared_recipes[0], {"coder": coder, "painter": painter})


async def test_a_score_of_an_incomplete_recipe_is_missing_and_a_retry_may_fill_it() -> None:
    failures = iter([ExpertUnavailable("down", expert="coder")])
    coder = AnsweringExpert("coder", lambda _: next(failures, "draft"))
    painter = AnsweringExpert("painter", lambda text: "with" if "\ndraft\n" in text else "without")
    answer = await request_answer(polished(coder, painter), probe_of("q").messages, limits=LIMITS)
    assert answer.text == "with"
    assert [(call.expert, call.step) for call in answer.calls] == [("coder", 0), ("painter", 1)]
    down = AnsweringExpert("coder", lambda _: ExpertUnavailable("down", expert="coder"))
    with pytest.raises(ExpertUnavailable, match=r"answer of 'polished' is incomplete \(its member 'coder' gave no"):
        await request_answer(polished(down, painter), probe_of("q").messages, limits=LIMITS)
    assert len(down.questions) == LIMITS.attempts


async def test_a_member_that_rejects_the_request_is_not_asked_again() -> None:
    rejects = AnsweringExpert("coder", lambda _: ExpertRejected("too long", expert="coder", status=400))
    with pytest.raises(ExpertRejected, match="its member 'coder' gave no answer: rejected"):
        await request_answer(
            polished(rejects, AnsweringExpert("painter", lambda _: "x")), probe_of("q").messages, limits=LIMITS
        )
    assert len(rejects.questions) == 1


def test_the_key_of_a_score_depends_on_the_recipe_and_on_all_its_members() -> None:
    registry = registry_of(recipes=DECLARED)
    (recipe,) = registry.declared_recipes
    members = [registry.expert(name) for name in recipe.members]
    keys = {
        recipe_keys([probe_of("q")], one, specs, None)[0]
        for one, specs in (
            (recipe, members),
            (recipe.model_copy(update={"instruction": "Other."}), members),
            (recipe.model_copy(update={"chain": ("painter", "coder")}), members[::-1]),
            (recipe, [members[0], members[1].model_copy(update={"model": "other"})]),
            (recipe, [members[0].model_copy(update={"system_prompt": "Be brief."}), members[1]]),
        )
    }
    assert len(keys) == 5
