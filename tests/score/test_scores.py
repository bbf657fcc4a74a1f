"""A scoring run in process: pace, failures, the journal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.core import Expert
from coe.errors import DataError, ExpertRejected, ExpertUnavailable
from coe.measuring.probes import Probe
from coe.measuring.recorded_answers import RetryLimits
from coe.measuring.sandbox import Sandbox
from coe.measuring.scoring import Scoring, score_report
from coe.measuring.scoring_run import (
    MAX_CONSECUTIVE_FAILURES,
    Cell,
    ExpertColumn,
    Journal,
    ScoringRun,
    cell_keys,
    score_columns,
)
from coe.records.record import RecipeCall
from coe.registry import ExpertSpec
from tests.fakes import registry_of
from tests.score.answering import AnswerFunction, AnsweringExpert, probe_of
from tests.score.bubblewrap import needs_bubblewrap

pytestmark = pytest.mark.anyio

DOWN = ExpertUnavailable("expert 'a' cannot be reached", expert="a")


class Runner:
    """Runs experts on probes with a journal in a folder, and keeps the reported lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.reported: list[str] = []
        self.advanced: list[str] = []

    async def score(self, probes: Sequence[Probe], *experts: Expert, judge: Expert | None = None) -> Journal:
        limits = RetryLimits(attempts=3, pause_seconds=0)
        with Journal(self.path) as journal:
            run = ScoringRun(
                journal,
                Sandbox(),
                judge,
                limits,
                4,
                report=self.reported.append,
                advance=self.advanced.append,
            )
            columns = [ExpertColumn(expert, missing(journal, expert, probes)) for expert in experts]
            await score_columns(columns, run)
        return journal


def missing(journal: Journal, expert: Expert, probes: Sequence[Probe]) -> dict[str, Probe]:
    keyed = {f"{expert.name}/{probe.prompt_id}": probe for probe in probes}
    return {key: probe for key, probe in keyed.items() if key not in journal.scored}


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


PROBES = [probe_of(f"p{number}") for number in range(30)]


def always(answer: str | Exception) -> AnswerFunction:
    return lambda _: answer


async def test_every_expert_answers_every_probe_with_a_bound_on_how_many_at_once(runner: Runner) -> None:
    good, bad = AnsweringExpert("good", always("Right.")), AnsweringExpert("bad", always("wrong"))
    journal = await runner.score(PROBES, good, bad)
    assert {cell.score for key, cell in journal.scored.items() if key.startswith("good/")} == {1.0}
    assert {cell.score for key, cell in journal.scored.items() if key.startswith("bad/")} == {0.0}
    assert len(journal.scored) == len(runner.advanced) == 60
    assert good.most_at_once == bad.most_at_once == 4
    cell = journal.scored["good/p3"]
    assert (cell.input_tokens, cell.output_tokens, cell.finish_reason, cell.cut) == (3, 5, "stop", False)
    assert (cell.answer, cell.output_chars) == ("right", 6)
    assert runner.reported == []


async def test_an_expert_that_is_down_is_reported_at_once_skipped_and_never_scored(runner: Runner) -> None:
    a, b = AnsweringExpert("a", always(DOWN)), AnsweringExpert("b", always("right"))
    journal = await runner.score(PROBES, a, b)
    assert len([key for key in journal.scored if key.startswith("b/")]) == 30
    assert not any(key.startswith("a/") for key in journal.scored)
    assert MAX_CONSECUTIVE_FAILURES <= len(journal.failed) < MAX_CONSECUTIVE_FAILURES + 4
    assert len(a.questions) == 3 * len(journal.failed)
    assert runner.reported[0] == "a: probe p0 has no score: expert 'a' cannot be reached"
    assert "failed 10 probes in a row" in runner.reported[1]
    assert len(runner.reported) == 2


async def test_a_rejected_probe_is_not_retried_and_does_not_stop_the_rest(runner: Runner) -> None:
    def answer_to(text: str) -> str | Exception:
        number = int(text[1:])
        return ExpertRejected("too long", expert="a", status=400) if number < 20 else "right"

    a = AnsweringExpert("a", answer_to)
    journal = await runner.score(PROBES, a)
    assert len(a.questions) == 30
    assert len(journal.scored) == 10
    assert {cell.code for cell in journal.failed.values()} == {"expert_rejected"}


async def test_a_second_run_requests_only_missing_scores(runner: Runner) -> None:
    await runner.score(PROBES[:20], AnsweringExpert("a", lambda text: DOWN if text == "p7" else "right"))
    again = AnsweringExpert("a", always("right"))
    journal = await runner.score(PROBES, again)
    assert sorted(again.questions) == sorted(["p7", *(f"p{number}" for number in range(20, 30))])
    assert len(journal.scored) == 30
    assert not journal.failed


@needs_bubblewrap
async def test_code_is_run_against_its_tests(runner: Runner) -> None:
    probe = probe_of("add", checker="code", reference=None, tests="assert add(1, 2) == 3")
    right = AnsweringExpert("right", always("```python\ndef add(a, b): return a + b\n```"))
    wrong = AnsweringExpert("wrong", always("```python\ndef add(a, b): return a - b\n```"))
    journal = await runner.score([probe], right, wrong)
    assert journal.scored["right/add"].score == 1.0
    assert journal.scored["wrong/add"].score == 0.0
    assert "assert add(1, 2) == 3" in journal.scored["wrong/add"].note


async def test_a_judge_grades_with_the_reference_and_its_failure_leaves_the_cell_missing(runner: Runner) -> None:
    probe = probe_of("poem", checker="judge", reference="THEIRS")
    poet = AnsweringExpert("poet", always("<think>hm</think>" + "OURS" * 10_000))
    failed = await runner.score([probe], poet, judge=AnsweringExpert("judge", always("no idea")))
    assert failed.failed["poet/poem"].error.startswith("the judge failed: expert 'judge' gave no grade")
    down = await runner.score([probe], poet, judge=AnsweringExpert("judge", always(DOWN)))
    assert down.failed["poet/poem"].error == "the judge failed: expert 'a' cannot be reached"
    judge = AnsweringExpert("judge", always("7"))
    journal = await runner.score([probe], poet, judge=judge)
    assert journal.scored["poet/poem"].score == 0.7
    assert journal.scored["poet/poem"].answer is None  # free text has no form
    (asked,) = judge.questions
    assert "THEIRS" in asked
    assert "hm" not in asked
    assert len(asked) < 10_000


async def test_an_answer_that_is_no_completion_is_a_failure_not_a_zero(runner: Runner) -> None:
    class Garbled(AnsweringExpert):
        async def stream(self, call):  # type: ignore[no-untyped-def]
            reply = await super().stream(call)
            reply._chunks = [b'{"choices": []}']
            return reply

    journal = await runner.score(PROBES[:1], Garbled("a", always("")))
    assert journal.failed["a/p0"].code == "expert_invalid_response"


async def test_an_empty_answer_is_an_answer_and_a_cut_one_is_marked_and_has_no_form(runner: Runner) -> None:
    journal = await runner.score(PROBES[:1], AnsweringExpert("a", always("right"), finish="length"))
    cell = journal.scored["a/p0"]
    assert (cell.score, cell.cut, cell.answer) == (1.0, True, None)
    journal = await runner.score(PROBES[:1], AnsweringExpert("b", always("")))
    assert (journal.scored["b/p0"].score, journal.scored["b/p0"].cut) == (0.0, False)


# ------------------------------------------------------------------------------------------------------------- journal


def test_an_incomplete_last_line_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(Cell("k1", "p1", "a", score=1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key":"k2","prom')
    with Journal(path) as journal:
        assert set(journal.scored) == {"k1"}
        journal.append(Cell("k2", "p2", "a", score=0.0))
    assert path.read_bytes().startswith(whole)
    assert [orjson.loads(line)["key"] for line in path.read_bytes().splitlines()] == ["k1", "k2"]


def test_nothing_of_an_answer_is_lost_when_a_run_continues(tmp_path: Path) -> None:
    calls = (RecipeCall("a", 0, "answered", 1, 2, 3.0), RecipeCall("b", 1, "answered", ms=4.0))
    cell = Cell("k", "p", "a", 0.5, 3, 5, 12.5, "paris", 20, "length", "note", calls=calls, text="Paris")
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(cell)
    with Journal(path) as journal:
        assert journal.scored == {"k": cell}


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"surprise": 1}', "5", '"a cut line"'])
def test_a_damaged_journal_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"journal\.jsonl:1: not a line of the journal"), Journal(path):
        pass


# ------------------------------------------------------------------------------------------------- keys and the report


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"adapter": "adapters/lawyer"}, True),
        ({"model": "other"}, True),
        ({"system_prompt": "Be brief."}, True),
        ({"parameters": {"temperature": 0}}, True),
        ({"prices": {"input": 1}, "memory_gb": 10, "context_length": 9}, False),
    ],
)
def test_only_what_changes_the_answers_changes_the_key(changes: dict[str, Any], anew: bool) -> None:
    def key(**changes: Any) -> str:
        spec = ExpertSpec.model_validate({"name": "lawyer", "model": "base", "runtime": "vllm"} | changes)
        return cell_keys([probe_of("x")], spec, None)[0]

    assert (key(**changes) != key()) == anew


def test_a_key_changes_with_the_probe_and_that_of_a_judged_one_with_the_judge() -> None:
    spec, judge = registry_of().experts[:2]
    checked, judged = probe_of("x"), probe_of("x", checker="judge")
    assert cell_keys([checked], spec, None) == cell_keys([replace(checked, category="code")], spec, judge)
    assert cell_keys([checked], spec, None) != cell_keys([replace(checked, digest="other")], spec, None)
    assert cell_keys([judged], spec, judge) != cell_keys([judged], spec, spec)


def test_the_report_counts_scores_gaps_and_reasons(tmp_path: Path) -> None:
    registry = registry_of()
    name = registry.expert_names[0]
    scoring = Scoring(
        registry, [probe_of("x"), probe_of("y", category="code"), probe_of("z")], (), registry.experts[:1], None, 1
    )
    one, two, three = scoring.keys[name]
    with Journal(tmp_path / "j") as journal:
        journal.append(Cell(one, "x", name, score=1.0, output_tokens=5, latency_ms=10.0, finish_reason="length"))
        journal.append(Cell(two, "y", name, score=0.5, latency_ms=20.0))
        journal.append(Cell(three, "z", name, code="expert_timeout", error="too slow"))
        report = score_report(scoring, journal)
    column = report["experts"][name]
    assert (report["missing"], column["scored"], column["missing"]) == (1, 2, 1)
    assert column["categories"] == {"code": {"n": 1, "mean": 0.5}, "general": {"n": 1, "mean": 1.0}}
    assert (column["mean"], column["latency_ms_p50"], column["output_tokens"], column["cut"]) == (0.75, 15.0, 5, 1)
    assert (column["errors"], column["first_error"]) == ({"expert_timeout": 1}, "too slow")
