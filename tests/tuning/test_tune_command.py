"""`coe tune` as a user runs it, against three servers that are good at different categories."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.cli.tune import confirmed
from coe.errors import DataError
from coe.measuring.probes import read_probes
from coe.measuring.scoring import Scoring, open_journal
from coe.measuring.scoring_run import Journal
from coe.measuring.tune import Goal, Limits, Tuning
from coe.registry import load
from coe.settings import Settings
from tests import forked
from tests.score.answering import AnsweringServer, completion
from tests.waiting import LONG_TIME, expire_when

pytestmark = pytest.mark.anyio
SKILL = {"maths": {"math": 0.95}, "laws": {"law": 0.95}, "weak": {}}
COUNT = 40


def answers(name: str) -> Callable[[str], str]:
    """The right answer, 42, with the skill of the category that the text names, else .3; the same each time."""

    def answer(text: str) -> str:
        chance = next((SKILL[name].get(word, 0.3) for word in ("math", "law") if word in text), 0.3)
        drawn = int(hashlib.sha256(f"{name} {text}".encode()).hexdigest()[:8], 16) / 2**32
        return "42" if drawn < chance else "no idea"

    return answer


@dataclass
class Place:
    server: AnsweringServer
    folder: Path
    judge: str = ""

    def declare(self, *, priced: bool = True, dead: str = "") -> None:
        prices = ", prices: {input: 1, output: 10}" if priced else ""
        experts = [
            f"{{name: {name}, model: {name}, runtime: external, parameters: {{max_tokens: 100}}{prices}, "
            f"base_url: 'http://127.0.0.1:{1 if name == dead else self.server.port}/v1'}}"
            for name in SKILL
        ]
        (self.folder / "experts.yaml").write_text(
            "version: 1\ncategories: [{name: math, description: m}, {name: law, description: l}, "
            f"{{name: general, description: g}}]\nexperts: [{', '.join(experts)}]\nassignment: {{general: weak}}\n"
        )

    def probes(self) -> None:
        rows = [
            {"id": f"{name}{n}", "prompt": f"A {name} question, {n}", "category": name, "checker": "exact",
             "reference": "42", "difficulty": ("easy", "medium", "hard")[n % 3]}
            for name in ("math", "law", "general")
            for n in range(COUNT)
        ]  # fmt: skip
        (self.folder / "probes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        options = ("--config", str(self.folder / "experts.yaml"), "--out", str(self.folder / "out"))
        return await asyncio.create_subprocess_exec(
            *forked.python("coe.cli", "tune", str(self.folder / "probes.jsonl"), *options, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
            preexec_fn=forked.restore_interrupts,
        )

    async def invoke(self, *words: str) -> Any:
        """Run the command in a thread: it has an event loop of its own."""
        options = ("--config", str(self.folder / "experts.yaml"), "--out", str(self.folder / "out"))
        command = ["tune", str(self.folder / "probes.jsonl"), *options, *words]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    def judged(self) -> None:
        """Have all probes scored by the expert `weak`."""
        text = (self.folder / "probes.jsonl").read_text()
        (self.folder / "probes.jsonl").write_text(text.replace('"exact"', '"judge"'))
        self.judge = "weak"

    async def tuning(self, journal: Journal, limits: Limits) -> tuple[Tuning, Settings]:
        return await asyncio.to_thread(self._tuning, journal, limits)  # it reads the log in a loop of its own

    def _tuning(self, journal: Journal, limits: Limits) -> tuple[Tuning, Settings]:
        settings = Settings.read({}, config=self.folder / "experts.yaml")
        registry = load(settings.config, environ={})
        probes = read_probes(self.folder / "probes.jsonl", categories=registry.category_names)
        judge = registry.expert(self.judge) if self.judge else None
        scoring = Scoring(registry, probes, (), registry.experts, judge, 4)
        return Tuning.of(scoring, journal, settings, limits=limits, goal=Goal()), settings

    async def tuned(self, limits: Limits) -> tuple[str, Tuning, list[str]]:
        """The reason for the end, the run, and the lines that it printed."""
        lines: list[str] = []
        with open_journal(self.folder / "out") as journal:
            tuning, settings = await self.tuning(journal, limits)
            return await tuning.run(settings, lines.append), tuning, lines


@pytest.fixture
async def place(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with AnsweringServer({name: answers(name) for name in SKILL}).running() as server:
        found = Place(server, tmp_path)
        found.declare()
        found.probes()
        yield found


async def test_one_command_measures_plans_and_puts_the_plan_into_use(place: Place) -> None:
    result = await place.invoke("--yes", "--budget", "2", "--json")
    assert result.exit_code == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    chosen = {row["category"]: row["expert"] for row in report["plan"]["assignment"]}
    assert chosen == {"math": "maths", "law": "laws", "general": "weak"}
    assert (report["reason"], report["in_use"]) == ("settled", True)
    assert report["plan"]["used"]["max_share"] == pytest.approx(1 / 3)  # categories count by probes, not by scores
    status = report["status"]
    assert status["known"] < 0.5 * status["cells"]
    check = 3 * (len("Hi") + 32 + 16 * 10) / 1e6  # of the experts, at the start
    assert status["spent"] == pytest.approx(check + status["scored"] * 0.000053)
    assert {row["expert"] for row in report["plan"]["against"]} == {None, *SKILL}
    assert all(row["latency_ms"] > 0 for row in report["plan"]["against"])
    assert list((place.folder / ".coe" / "artifacts" / "assignment").glob("current*"))
    assert "estimate: " in result.stderr


async def test_ctrl_c_keeps_the_scores_and_the_second_run_goes_on(place: Place) -> None:
    place.server.hold(after=3 + 10)  # the live check of three experts, and ten probes
    process = await place.start("--yes", "--concurrency", "2", "--json")
    journal = place.folder / "out" / "journal.jsonl"
    async with asyncio.timeout(60):
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, complaints = await asyncio.wait_for(process.communicate(), 240)
    report = json.loads(output)
    assert (process.returncode, report["reason"], report["in_use"]) == (1, "stopped", False)
    assert b"Traceback" not in complaints
    place.server.hold(after=10**6)
    place.server.bodies.clear()
    reason, tuning, _ = await place.tuned(Limits())
    assert reason == "settled"
    assert tuning.status().known == 10 + len(place.server.bodies)


async def test_a_budget_is_never_broken(place: Place) -> None:
    alike = {name: (lambda text, name=name: answers("weak")(f"{name} {text}")) for name in SKILL}
    place.server.models.update(alike)
    reason, tuning, _ = await place.tuned(Limits(dollars=0.0035))  # a call may cost .00105, and costs .000053
    assert reason == "budget"
    assert 0.0035 - 0.0011 < tuning.spending.spent <= 0.0035
    assert tuning.status().known == len(place.server.bodies) == round(tuning.spending.spent / 0.000053)
    assert tuning.spending.reserved == pytest.approx(0.0)


async def test_an_expert_whose_server_exceeds_the_output_limit_is_left_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.score.answering.completion", lambda text: completion(text, written=1000))
    reason, tuning, lines = await place.tuned(Limits(dollars=1.0))
    assert reason == "no expert answers"
    assert [line.partition(":")[0] for line in sorted(lines)] == sorted(SKILL)
    assert tuning.spending.spent <= 3 * 4 * 0.0101  # at most those that were in flight


async def test_a_small_budget_is_spent_on_all_experts_alike(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.score.answering.completion", lambda text: completion(text, written=100))
    price = 3 * (100 * 10 + 32 + len("A general question, 39")) / 1e6
    reason, tuning, _ = await place.tuned(Limits(dollars=2 * price))
    assert reason == "budget"
    assert Counter(body["model"] for body in place.server.bodies) == dict.fromkeys(SKILL, 2)
    assert tuning.spending.spent <= 2 * price


async def test_a_plan_that_is_not_settled_is_not_put_into_use_unasked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.cli.tune.Goal", lambda: Goal(tolerance=-1.0, min_gain=-1.0))  # out of reach
    monkeypatch.setattr("tests.score.answering.completion", lambda text: completion(text, written=50))
    result = await place.invoke("--yes", "--budget", "0.007", "--json")  # 13 calls; more would follow
    report = json.loads(result.stdout)
    assert (result.exit_code, report["reason"], report["in_use"]) == (1, "budget", False)
    assert f"not settled: run again to continue; `coe plan {place.folder / 'out'}`" in result.stderr
    assert not list(place.folder.glob(".coe/artifacts/assignment/current*"))


async def test_an_answer_starts_only_if_its_grade_fits_into_the_budget_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.judged()
    monkeypatch.setattr("tests.score.answering.completion", lambda text: completion(text, written=100))
    monkeypatch.setattr("coe.measuring.tune.MAX_GRADED_CHARACTERS", 20)
    place.server.models["weak"] = lambda text: "1" if "An assistant answered" in text else "42"
    reason, tuning, _ = await place.tuned(Limits(dollars=0.03))
    grades = sum("An assistant answered" in body["messages"][-1]["content"] for body in place.server.bodies)
    scored = tuning.status().known
    assert reason == "budget"
    assert grades == scored == len(place.server.bodies) - grades > 0
    assert tuning.spending.spent <= 0.03


async def test_no_call_starts_when_the_time_is_over(place: Place) -> None:
    reason, tuning, _ = await place.tuned(Limits(seconds=0.0))
    assert (reason, tuning.status().known, place.server.bodies) == ("time", 0, [])
    result = await place.invoke("--yes", "--minutes", "0")
    assert "the time is over, and no probe is scored yet; raise --minutes or --budget" in str(result.exception)
    assert not (place.folder / "out" / "scores.parquet").exists()


async def test_a_plan_of_wrong_answers_alone_is_not_put_into_use_unasked(place: Place) -> None:
    place.server.models.update(dict.fromkeys(SKILL, lambda _: "no idea"))
    result = await place.invoke("--yes", "--json")
    assert (result.exit_code, json.loads(result.stdout)["in_use"]) == (1, False)
    assert "no expert answered a probe correctly" in result.stderr


async def test_an_answer_that_does_not_come_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.server.hold(after=5)
    with open_journal(place.folder / "out") as journal:
        tuning, settings = await place.tuning(journal, Limits(seconds=LONG_TIME))

        def five_are_scored() -> bool:
            if len(journal.scored) == 5:
                tuning.spending.deadline = 0.0
            return tuning.spending.is_over

        expire_when(monkeypatch, five_are_scored)
        assert await tuning.run(settings, print) == "time"
        assert tuning.status().known == 5


async def test_an_expert_that_fails_a_whole_round_is_left_for_the_next_run(place: Place) -> None:
    place.server.models["weak"] = lambda _: 400
    reason, tuning, lines = await place.tuned(Limits())
    assert reason in ("settled", "little to gain", "all scored")
    assert sum(body["model"] == "weak" for body in place.server.bodies) == 6  # the first probes alone
    assert any(line.startswith("weak: answered no probe of a round") for line in lines)
    assert tuning.status().known > 2 * 6


async def test_a_budget_below_the_price_of_the_check_or_of_a_probe_is_refused(place: Place) -> None:
    result = await place.invoke("--yes", "--budget", "0")
    assert "--budget 0 is too small: checking the experts may cost" in str(result.exception)
    assert place.server.bodies == []
    result = await place.invoke("--yes", "--budget", "0.001")
    assert "no probe is scored yet; raise --minutes or --budget" in str(result.exception)
    assert {body["max_tokens"] for body in place.server.bodies} == {16}  # the live check alone


async def test_what_cannot_be_measured_is_refused_with_the_remedy(place: Place) -> None:
    result = await place.invoke("--budget", "1")
    assert result.exit_code == 2
    assert "--yes" in result.output
    place.declare(dead="laws")
    result = await place.invoke("--yes")
    assert "expert laws at" in result.output
    assert "laws cannot be measured; correct them, or remove them from experts.yaml" in str(result.exception)
    assert {body["max_tokens"] for body in place.server.bodies} == {16}  # the live check alone


async def test_experts_of_unknown_price_need_a_limit_or_consent(place: Place) -> None:
    place.declare(priced=False)
    with open_journal(place.folder / "out") as journal:
        tuning, _ = await place.tuning(journal, Limits())
        assert tuning.unpriced == list(SKILL)
        with pytest.raises(DataError, match=r"the cost of maths, laws, weak is unknown: declare `prices`"):
            confirmed(tuning, yes=False)
        assert confirmed(tuning, yes=True)
