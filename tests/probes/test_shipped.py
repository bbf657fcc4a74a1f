"""Every shipped probe: its checker accepts right answers in several wordings, and rejects plausible wrong ones."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from coe.measuring.probes.probes import DIFFICULTIES, probe_of
from coe.measuring.probes.shipped import shipped_probes, shipped_rows
from coe.measuring.probes.templates import drawn
from coe.measuring.sandbox import Sandbox
from coe.measuring.scoring_run import checked
from coe.recipes.final_answers.programs import program_of
from coe.registry import load
from tests.score.bubblewrap import needs_bubblewrap

ROWS = list(shipped_rows())
CATEGORIES = sorted({row["category"] for row in ROWS})
SEEDS = (0, 1, 2)


def answers() -> dict[str, dict[str, Any]]:
    files = sorted((Path(__file__).parent / "answers").glob("*.jsonl"))
    return {one["id"]: one for file in files for one in map(orjson.loads, file.read_bytes().splitlines())}


ANSWERS = answers()


def with_answers(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str], list[str]]]:
    """The row, its right and its wrong answers; of a template as drawn with several seeds."""
    right, wrong = (ANSWERS[row["id"]][key] for key in ("right", "wrong"))
    if "draw" not in row:
        yield row, right, wrong
        return
    for seed in SEEDS:
        one = drawn(row | {"right": right, "wrong": wrong}, seed)
        if row["checker"] == "numeric":
            value = float(one["reference"])
            one["right"] += [one["reference"], f"First 17, then 4.\nAnswer: **{one['reference']}**"]
            one["wrong"] += [f"{value * 1.1 + 1:.6f}", f"{one['reference']} or rather {value * 0.9 - 1:.6f}", "unknown"]
        yield one, one["right"], one["wrong"]


def test_each_category_of_the_shipped_configuration_has_forty_probes_of_three_difficulties() -> None:
    registry = load(Path(__file__).parents[2] / "experts.yaml", environ={})
    assert sorted(registry.category_names) == CATEGORIES
    counts = Counter((row["category"], row["difficulty"]) for row in ROWS)
    for category in CATEGORIES:
        found = [counts[category, difficulty] for difficulty in DIFFICULTIES]
        assert sum(found) == 40
        assert min(found) >= 12
    assert len({row["id"] for row in ROWS}) == len({row["prompt"] for row in ROWS}) == len(ROWS) == len(ANSWERS)


def test_half_of_the_probes_of_math_and_a_part_of_others_have_fresh_numbers_for_every_seed() -> None:
    one, other = (shipped_probes(CATEGORIES, seed) for seed in SEEDS[:2])
    changed = Counter(a.category for a, b in zip(one, other, strict=True) if a.prompt != b.prompt)
    fixed = [a for a, b in zip(one, other, strict=True) if a.prompt_id == b.prompt_id]
    assert changed["math"] >= 19
    least = {"business_finance": 17, "everyday": 14, "natural_science": 13, "logic_reasoning": 12, "code": 9}
    assert all(changed[category] >= count for category, count in least.items())
    assert fixed == [b for b in other if b.prompt_id in {probe.prompt_id for probe in fixed}]


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_checker_accepts_right_answers_and_rejects_wrong_ones(category: str) -> None:
    for row in (row for row in ROWS if row["category"] == category and row["checker"] != "code"):
        for one, right, wrong in with_answers(row):
            probe = probe_of(one, CATEGORIES)
            assert right, row["id"]
            assert wrong, row["id"]
            assert [answer for answer in right if not checked(probe, answer)] == [], row["id"]
            assert [answer for answer in wrong if checked(probe, answer)] == [], row["id"]


DECIMALS = {"to one decimal": 1, "to two decimals": 2, "to the nearest": 0}


def test_a_number_that_is_rounded_as_the_prompt_says_is_right_for_any_draw() -> None:
    rows = [(row, places) for row in ROWS for words, places in DECIMALS.items() if words in row["prompt"]]
    assert len(rows) > 20
    for row, places in rows:
        for seed in range(100):
            probe = probe_of(row, CATEGORIES, seed)
            assert checked(probe, f"{float(probe.reference or ''):.{places}f}"), (row["id"], probe.reference)


def test_the_letters_of_choices_are_spread() -> None:
    letters = Counter(row["reference"] for row in ROWS if row["checker"] == "choice")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 0.3 * letters.total()


CODE = [pytest.param(row, id=row["id"]) for row in ROWS if row["checker"] == "code"]


@pytest.mark.parametrize("row", CODE)
def test_the_tests_of_a_code_probe_pass_for_a_right_program_and_fail_for_a_wrong_one(row: dict[str, Any]) -> None:
    """In this process: the programs are this project's own, and the sandbox would take half a minute."""
    for one, right, wrong in with_answers(row):
        for program in right:
            exec(f"{program_of(program)}\n{one['tests']}", {})
        for program in wrong:
            with pytest.raises(Exception, match=r".*"):
                exec(f"{program_of(program)}\n{one['tests']}", {})


@needs_bubblewrap
@pytest.mark.anyio
async def test_the_sandbox_can_run_the_longest_code_probe() -> None:
    row = max((row for row in ROWS if row["checker"] == "code"), key=lambda row: len(row["tests"]))
    sandbox = Sandbox()
    one, right, wrong = next(with_answers(row))
    assert (await sandbox.run(right[0], one["tests"])).passed
    assert not (await sandbox.run(wrong[0], one["tests"])).passed
