"""The spend of `coe report` and the counters of dollars: sums of the log by key, expert and category, and baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
from typer.testing import CliRunner

from coe.cli import app
from coe.cli.report import _spend_lines
from coe.records.record import RecipeCall, RoutingLog
from coe.reports.spend import MAX_ROWS, OTHER, Spend
from tests.fakes import registry_of
from tests.gateway import words_server
from tests.records.samples import record

pytestmark = pytest.mark.anyio
LARGE, SMALL = {"input": 10.0, "output": 30.0}, {"input": 1.0, "output": 3.0}
EXPERTS = [
    {"name": name, "model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1", "prices": prices}
    for name, prices in (("coder", SMALL), ("painter", SMALL), ("generalist", LARGE))
]
TOKENS = {"input_tokens": 1_000_000, "output_tokens": 0, "cost": 1.0}


def spent(*records: Any) -> dict[str, Any]:
    found = Spend(registry_of(experts=EXPERTS))
    for one in records:
        found.add(one)
    return found.report()


def alone(expert: str, dollars: float, saved: float) -> dict[str, Any]:
    """A row of what an expert would have cost with the lengths of the given answers."""
    return {"expert": expert, "dollars": dollars, "low": dollars, "high": dollars, "saved": saved, "measured": 0.0}


def test_dollars_are_summed_by_each_dimension_the_largest_first() -> None:
    found = spent(
        record(0, expert="coder", key="a", **TOKENS),
        record(1, expert="coder", key="b", **TOKENS),
        record(2, expert="coder", key="a", **TOKENS),
        record(3, expert="generalist", key=None, category="art", **TOKENS | {"cost": 10.0}),
        record(4, expert="coder", key="a", outcome="expert_unavailable", first_token_ms=None,
               input_tokens=None, output_tokens=None),
    )  # fmt: skip
    sums = {
        dimension: [(row["name"], row["dollars"], row["requests"]) for row in rows]
        for dimension, rows in found["rows"].items()
    }
    assert sums["key"] == [("", 10.0, 1), ("a", 2.0, 3), ("b", 1.0, 1)]
    assert sums["category"] == [("art", 10.0, 1), ("code", 3.0, 4)]
    assert sums["expert"] == [("generalist", 10.0, 1), ("coder", 3.0, 4)]
    assert list(sums) == ["expert", "category", "key", "tenant"]
    assert (found["total"]["dollars"], found["total"]["requests"], found["total"]["unpriced"]) == (13.0, 5, 0)


def test_an_expert_that_answered_for_a_failed_recipe_has_the_rest_of_the_tokens() -> None:
    calls = (RecipeCall("coder", 0, "answered", 1_000_000, 0), RecipeCall("painter", 1, "error"))
    fallback = record(0, expert="generalist", fallback_from="polished", recipe="polished", recipe_stop="failed",
                      steps=calls, input_tokens=3_000_000, output_tokens=0, cost=21.0)  # fmt: skip
    found = spent(fallback)
    assert [(row["name"], row["dollars"], row["input_tokens"]) for row in found["rows"]["expert"]] == [
        ("generalist", 20.0, 2_000_000),
        ("coder", 1.0, 1_000_000),
    ]
    assert found["always"]["experts"][0] == alone("generalist", 20.0, -1.0)
    assert found["total"]["dollars"] == 21.0


def test_the_baseline_prices_the_same_tokens_of_the_same_requests() -> None:
    answered = [record(0, expert="coder", **TOKENS), record(1, expert="generalist", **TOKENS | {"cost": 10.0})]
    unknown = record(2, expert="coder", input_tokens=None, output_tokens=None)
    found = spent(*answered, unknown)
    assert found["always"] == {
        "requests": 2,
        "dollars": 11.0,
        "experts": [
            alone("generalist", 20.0, 9.0),
            alone("coder", 2.0, -9.0),
            alone("painter", 2.0, -9.0),
        ],
        "unknown": [],
    }
    assert found["total"]["unpriced"] == 1


def test_the_baseline_writes_as_much_as_its_own_answers_in_the_category_where_enough_are_logged() -> None:
    random, held = np.random.default_rng(0), list[bool]()
    prices = registry_of(experts=EXPERTS).expert("generalist").prices
    for _ in range(50):
        found, truth = Spend(registry_of(experts=EXPERTS)), 0.0
        for n in range(500):
            category = ("code", "art")[n % 2]
            long, short = random.lognormal(7.0, 0.5), random.lognormal(6.0 + n % 2, 0.5)
            is_large = random.random() < 0.2
            truth += prices.cost(100, int(long))
            expert, written = ("generalist", long) if is_large else ("coder", short)
            found.add(
                record(n, expert=expert, category=category, input_tokens=100, output_tokens=int(written), cost=1.0)
            )
        row = next(one for one in found.report()["always"]["experts"] if one["expert"] == "generalist")
        assert row["measured"] == 1.0
        assert row["high"] - row["low"] < 0.5 * truth
        held.append(row["low"] <= truth <= row["high"])
    assert np.mean(held) >= 0.9


def test_a_recipe_is_shared_out_to_its_members_and_compared_by_its_accepted_answer() -> None:
    calls = (
        RecipeCall("coder", 0, "answered", 1_000_000, 0),
        RecipeCall("generalist", 1, "answered", 1_000_000, 0, accepted=True),
        RecipeCall("painter", 1, "cancelled"),
    )
    recipe = record(0, expert="careful", recipe="careful", steps=calls, input_tokens=2_000_000, output_tokens=0,
                    cost=11.0)  # fmt: skip
    found = spent(recipe)
    assert [(row["name"], row["dollars"]) for row in found["rows"]["expert"]] == [("generalist", 10.0), ("coder", 1.0)]
    assert found["always"]["experts"][0] == alone("generalist", 10.0, -1.0)
    assert [row["dollars"] for row in found["rows"]["category"]] == [11.0]


def test_an_expert_without_prices_is_no_free_baseline_and_its_answers_are_unpriced() -> None:
    server = {"model": "m", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
    registry = registry_of(experts=[{"name": "coder", **server}, *EXPERTS[1:]])
    found = Spend(registry)
    found.add(record(0, expert="coder", **TOKENS | {"cost": 0.0}))
    found.add(record(1, expert="generalist", **TOKENS | {"cost": 10.0}))
    report = found.report()
    assert [(row["name"], row["unpriced"]) for row in report["rows"]["expert"]] == [("generalist", 0), ("coder", 1)]
    assert report["always"] == {
        "requests": 1,
        "dollars": 10.0,
        "experts": [
            alone("generalist", 10.0, 0.0),
            alone("painter", 1.0, -9.0),
        ],
        "unknown": ["coder"],
    }
    spend, _, alone_by = "\n".join(_spend_lines(report, days=7)).partition("so of unknown cost: coder\n")
    assert "coder" in spend
    assert "coder" not in alone_by


def test_a_log_with_endless_names_has_a_bounded_report() -> None:
    found = spent(*(record(n, key=f"k{n}", **TOKENS) for n in range(MAX_ROWS + 5)))
    rows = found["rows"]["key"]
    assert len(rows) == MAX_ROWS
    assert (rows[0]["name"], rows[0]["dollars"]) == (OTHER, 6.0)


async def test_the_command_reads_each_kind_of_log(
    log: RoutingLog, log_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.artifacts.active_state.load_active_state", words_server.read)
    now = time.time()
    await log.append([record(n, time=now - n * 3600, expert="coder", key="a", **TOKENS) for n in range(30)])
    config = tmp_path / "experts.yaml"
    declared = registry_of(experts=EXPERTS).model_dump(mode="json", exclude_defaults=True)
    config.write_text(json.dumps(declared | {"log": {"url": log_url}}))
    monkeypatch.setenv("COE_HOME", str(tmp_path))

    def run(*arguments: str) -> Callable[[], Any]:
        return lambda: CliRunner().invoke(app, ["report", "--config", str(config), *arguments])

    found = json.loads((await anyio.to_thread.run_sync(run("--since", "1d", "--json"))).stdout)
    assert (found["days"], found["spend"]["total"]["requests"], found["traffic"]["last_day"]) == (1, 24, 24)
    assert [(row["name"], row["dollars"]) for row in found["spend"]["rows"]["key"]] == [("a", 24.0)]
    assert (await anyio.to_thread.run_sync(run("--since", "0d"))).exit_code == 2
