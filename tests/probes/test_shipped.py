"""Every shipped probe: its checker accepts right answers in several wordings, and rejects plausible wrong ones."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.measuring.probes import DIFFICULTIES, probe_of, shipped_rows
from coe.measuring.sandbox import Sandbox
from coe.measuring.scoring_run import checked
from coe.recipes.final_answers import program_of
from coe.registry import load
from tests.score.bubblewrap import needs_bubblewrap

ROWS = list(shipped_rows())
CATEGORIES = sorted({row["category"] for row in ROWS})


def answers() -> dict[str, dict[str, Any]]:
    files = sorted((Path(__file__).parent / "answers").glob("*.jsonl"))
    return {one["id"]: one for file in files for one in map(orjson.loads, file.read_bytes().splitlines())}


ANSWERS = answers()


def test_each_category_of_the_shipped_configuration_has_forty_probes_of_three_difficulties() -> None:
    registry = load(Path(__file__).parents[2] / "experts.yaml", environ={})
    assert sorted(registry.category_names) == CATEGORIES
    counts = Counter((row["category"], row["difficulty"]) for row in ROWS)
    for category in CATEGORIES:
        found = [counts[category, difficulty] for difficulty in DIFFICULTIES]
        assert sum(found) == 40
        assert min(found) >= 12
    assert len({row["id"] for row in ROWS}) == len({row["prompt"] for row in ROWS}) == len(ROWS) == len(ANSWERS)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_checker_accepts_right_answers_and_rejects_wrong_ones(category: str) -> None:
    for row in (row for row in ROWS if row["category"] == category and row["checker"] != "code"):
        probe, known = probe_of(row, CATEGORIES), ANSWERS[row["id"]]
        assert known["right"], row["id"]
        assert known["wrong"], row["id"]
        assert [answer for answer in known["right"] if not checked(probe, answer)] == [], row["id"]
        assert [answer for answer in known["wrong"] if checked(probe, answer)] == [], row["id"]


DECIMALS = {"to one decimal": 1, "to two decimals": 2, "to the nearest": 0}


def test_a_number_that_is_rounded_as_the_prompt_says_is_right() -> None:
    rows = [(row, places) for row in ROWS for words, places in DECIMALS.items() if words in row["prompt"]]
    assert len(rows) > 20
    for row, places in rows:
        probe = probe_of(row, CATEGORIES)
        assert checked(probe, f"{float(probe.reference or ''):.{places}f}"), (row["id"], probe.reference)


def test_the_letters_of_choices_are_spread() -> None:
    letters = Counter(row["reference"] for row in ROWS if row["checker"] == "choice")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 0.3 * letters.total()


CODE = [pytest.param(row, id=row["id"]) for row in ROWS if row["checker"] == "code"]


@pytest.mark.parametrize("row", CODE)
def test_the_tests_of_a_code_probe_pass_for_a_right_program_and_fail_for_a_wrong_one(row: dict[str, Any]) -> None:
    """In this process: the programs are this project's own, and the sandbox would take half a minute."""
    for program in ANSWERS[row["id"]]["right"]:
        exec(f"{program_of(program)}\n{row['tests']}", {})
    for program in ANSWERS[row["id"]]["wrong"]:
        with pytest.raises(Exception, match=r".*"):
            exec(f"{program_of(program)}\n{row['tests']}", {})


@needs_bubblewrap
@pytest.mark.anyio
async def test_the_sandbox_can_run_the_longest_code_probe() -> None:
    row = max((row for row in ROWS if row["checker"] == "code"), key=lambda row: len(row["tests"]))
    sandbox, known = Sandbox(), ANSWERS[row["id"]]
    assert (await sandbox.run(known["right"][0], row["tests"])).passed
    assert not (await sandbox.run(known["wrong"][0], row["tests"])).passed
