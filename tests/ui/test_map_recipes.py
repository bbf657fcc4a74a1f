"""The map of a plan with recipes: arms beside experts, with their members and costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect
from typer.testing import CliRunner

from coe.cli import app
from tests.gateway.served import Served, serving
from tests.recipes.recorded import recorded_answers
from tests.ui.browsing import needs_browser, visiting

pytestmark = [pytest.mark.anyio, needs_browser]
PRICES = {"a": 1.0, "b": 1.0, "large": 12.0}
LETTERS = "ABCDEFGHIJ"
RECIPES = [{"name": "careful", "cascade": [["a", "b"], "large"]}]


def write_scores(folder: Path) -> None:
    """Answers of two small experts and a large one; 100 output tokens each."""
    answers = recorded_answers({"a": (0.6, 0.5), "b": (0.6, 0.5), "large": (0.8, 0.75)}, PRICES, prompts=1200)
    prompts: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    given: list[dict[str, Any]] = []
    for row, label in enumerate(answers.labels.tolist()):
        one = {"benchmark": "own", "prompt_id": str(row)}
        prompts.append({**one, "prompt": f"question {row}", "category": ("code", "art")[label], "label": ""})
        for column, name in enumerate(answers.experts):
            scores.append({**one, "model": name, "score": answers.scores[row, column]})
            used = {"input_tokens": 0, "output_tokens": 100, "latency_ms": 100.0}
            given.append({**one, "model": name, "answer": LETTERS[answers.classes[row, column]], **used})
    for name, rows in (("prompts", prompts), ("scores", scores), ("answers", given)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
async def planned(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("planned")
    write_scores(folder)
    experts = [
        {"name": name, "model": "good", "runtime": "external", "base_url": "http://127.0.0.1:9/v1"}
        | {"active_parameters_b": price, "prices": {"output": 10 * price}}
        for name, price in PRICES.items()
    ]
    declared = {"assignment": {"general": "large"}, "budget": {"mean_cost": 10}, "recipes": RECIPES}
    async with serving(folder, experts=experts, **declared) as served:
        words = ["plan", str(folder), "--config", str(folder / "experts.yaml")]
        result = await asyncio.to_thread(CliRunner().invoke, app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        async with asyncio.timeout(60):
            while "careful" not in (await read_map(served))["experts"]:
                await asyncio.sleep(0.05)
        yield served


async def read_map(served: Served) -> dict[str, Any]:
    async with served.client.get(f"{served.url}/v1/map") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_arms_are_beside_the_experts_with_members_and_cost(browser: Browser, planned: Served) -> None:
    found = await read_map(planned)
    chosen = {row["category"]: row["expert"] for row in found["assignment"]}
    assert chosen["code"] == "careful"
    async with visiting(browser, f"{planned.url}/ui/#/map") as page:
        heat = page.locator("table.heat")
        await expect(heat.locator("thead th").nth(4)).to_have_text("carefula + b, then large")
        cell = page.get_by_role("button", name=f"code, {chosen['code']}:")
        await cell.focus()
        description = page.locator(".heat-description")
        for text in ("Cost $", "per thousand requests", "Assigned to this category", "Members: a + b, then large."):
            await expect(description).to_contain_text(text)
        arms = page.get_by_role("region", name="Recipes")
        await expect(arms.locator("tbody tr")).to_have_count(1)
        row = arms.get_by_role("row").filter(has_text=chosen["code"])
        await expect(row).to_contain_text("a + b, then large")
        await expect(row.locator("td").nth(2)).to_contain_text("code")
        await expect(row.locator("td").nth(4)).to_contain_text("$")
        assignment = page.get_by_role("region", name="Assignment").get_by_role("row").filter(has_text="code")
        await expect(assignment).to_contain_text("$")
        await expect(page.get_by_role("region", name="Value of each expert").get_by_role("row")).to_have_count(5)
