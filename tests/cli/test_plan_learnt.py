"""`coe plan` after `coe retrain`: what feedback has moved is kept, or dropped on request, and reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coe.mapping import read_evidence
from tests.cli.shop import Shop
from tests.routers.conftest import examples

MEASURED = {"cooking": "generalist", "football": "chef", "astronomy": "generalist"}
"""The better expert of each category by the probes; of cooking the users think otherwise."""


@pytest.fixture
def scores(shop: Shop) -> Path:
    """A folder as `coe score` writes it, with the same number of prompts for each category."""
    folder = shop.config.with_name("quality")
    folder.mkdir()
    prompts, results = [], []
    for number, example in enumerate(one for one in examples(count=60) if one.category in MEASURED):
        one = {"benchmark": "own", "prompt_id": str(number)}
        prompts.append({**one, "prompt": example.prompt, "category": example.category, "label": ""})
        for name in ("chef", "generalist"):
            good = MEASURED[example.category] == name
            results.append({**one, "model": name, "score": 0.8 if good else 0.4})
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, results)))
    return folder


def test_a_new_plan_keeps_the_feedback_of_moved_categories_unless_it_is_dropped(shop: Shop, scores: Path) -> None:
    shop.report("plan", scores)
    assert {name: shop.choices()[name] for name in MEASURED} == MEASURED
    shop.serve(1500)
    found = shop.retrain()
    assert found["promoted"], found["sentence"]
    assert [move["category"] for move in found["report"]["moves"] if move["verdict"] == "better"] == ["cooking"]
    assert shop.choices()["cooking"] == "chef"

    assert "kept from feedback: cooking (moved by coe retrain" in shop.run("plan", scores)
    assert shop.choices()["cooking"] == "chef"
    again = shop.report("plan", scores)
    assert again["feedback"] == {"kept": ["cooking"], "moved_by_scores": [], "dropped": []}
    assert shop.choices()["cooking"] == "chef"

    dropped = shop.run("plan", scores, "--drop-feedback")
    assert "dropped: the feedback on cooking, which coe retrain had moved" in dropped
    assert {name: shop.choices()[name] for name in MEASURED} == MEASURED


def test_a_plan_keeps_its_measured_scores_through_learning_rounds(shop: Shop, scores: Path) -> None:
    shop.report("plan", scores)
    names = {"categories": ("cooking", "football"), "experts": ("chef", "generalist")}

    def measured() -> tuple[list[list[float]], list[list[float]]]:
        version = shop.store().in_use()
        assert version is not None
        found = read_evidence(shop.store().published(version).folder, **names)
        assert found.measured is not None
        return found.measured.count.tolist(), found.measured.mean.tolist()

    before = measured()
    shop.serve(1500)
    assert shop.retrain()["promoted"]
    assert measured() == before


def test_a_damaged_plan_in_use_does_not_stop_a_new_one(shop: Shop, scores: Path) -> None:
    version = shop.report("plan", scores) and shop.store().in_use()
    assert version is not None
    (shop.store().published(version).folder / "plan.json").write_text("{")
    shop.run("plan", scores, "--deviations", "2")
    assert shop.store().in_use() not in (None, version)
