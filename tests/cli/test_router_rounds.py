"""Corrected categories make a better router, and only where that is shown. Training itself is a dictionary here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.core import Neighbour, Prediction
from coe.jobs import router_round
from coe.learning.retraining.router_round import Pair
from coe.records.feedback import Feedback
from tests.cli.shop import PROMPTS, Shop
from tests.learning.samples import record

TENANTS = ("a", "b", "c")
CATEGORIES = ("cooking", "astronomy", "football", "general")


class Remembering:
    """Knows the category that most prompts with the same words had."""

    categories = CATEGORIES
    version = "remembering"

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._votes: dict[str, list[int]] = {}
        for prompt, category in pairs:
            for word in prompt.split():
                self._votes.setdefault(word, [0] * len(CATEGORIES))[CATEGORIES.index(category)] += 1

    def predict_fast(self, text: str, *, force: bool = False) -> Prediction:
        votes = np.array([np.array(self._votes[w]) / sum(self._votes[w]) for w in text.split() if w in self._votes])
        scores = votes.sum(axis=0) + 0.01 if len(votes) else np.ones(len(CATEGORIES))
        return Prediction((scores / scores.sum()).astype(np.float32), "words")

    def predict(self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None) -> list[Prediction]:
        return [self.predict_fast(text) for text in texts]

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        return []


@pytest.fixture
def school(shop: Shop, built: tuple[Path, dict[str, Any], list[Any]], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """That keeps prompts, and whose trainings take no time; what they write is the tiny router's files."""
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in PROMPTS]
    shop.config.with_name("prompts.jsonl").write_text("\n".join(lines))
    shop.declare(router={"training_data": "prompts.jsonl"}, log={"url": shop.url, "store_prompts": True})

    def build(pairs: Sequence[Pair], out: Path, **_: object) -> Mapping[str, Any]:
        shutil.copytree(built[0], out, dirs_exist_ok=True)
        return {}

    monkeypatch.setattr(router_round, "build_router", build)
    monkeypatch.setattr(router_round, "train_router", lambda pairs, out, *, build: Remembering(pairs))
    monkeypatch.setattr(router_round, "plot_training", lambda metrics, folder: None)
    return shop


def correct(shop: Shop, texts: Sequence[str], category: str) -> None:
    records = [
        record(
            f"req_{category}_{number}",
            time=shop.began + number,
            prompt=text,
            category="football",
            expert="chef",
            candidates=("chef", "generalist"),
            probabilities={"football": 0.6, "general": 0.4},
            tenant=TENANTS[number % 3],
        )
        for number, text in enumerate(texts)
    ]
    events = [
        Feedback(f"c_{category}_{number}", one.request_id, one.time, "category", category, tenant=one.tenant)
        for number, one in enumerate(records)
    ]
    shop.append(records, events)


def test_corrections_of_many_tenants_train_the_router_and_are_recorded(school: Shop) -> None:
    before = school.store("router").in_use()
    correct(school, [f"pawn takes rook on field{n}" for n in range(60)], "astronomy")
    found = school.report("retrain")["router"]
    assert found["promoted"], found["sentence"]
    assert school.store("router").in_use() == found["version"] != before
    folder = Path(found["folder"])
    assert (folder / "report.md").read_text().startswith("# Router, round 1: promoted")
    assert (folder / "report.svg").is_file()
    correct(school, ["knight to general"], "cooking")
    assert "corrections are new, and a round takes 20" in school.report("retrain")["router"]["sentence"]
    assert school.report("rollback", "router")["in_use"] == before


def test_corrections_that_do_not_help_are_kept_out_with_a_report(school: Shop) -> None:
    correct(school, [f"bake the dough number {n}" for n in range(40)], "astronomy")
    found = school.report("retrain")["router"]
    assert not found["promoted"]
    assert found["sentence"].startswith("kept: ")
    assert (Path(found["folder"]) / "report.svg").is_file()
    assert "no correction is new" in again(school)


def again(shop: Shop) -> str:
    """What a round says whose only new feedback is a rating."""
    shop.serve(1)
    said: str = shop.report("retrain")["router"]["sentence"]
    return said


def test_a_router_that_was_trained_on_other_prompts_is_not_retrained(school: Shop) -> None:
    school.config.with_name("prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{name} {n}", "category": name}) for name in CATEGORIES for n in range(30))
    )
    correct(school, [f"pawn takes rook {n}" for n in range(30)], "general")
    assert "trained on other prompts than are declared" in school.report("retrain")["router"]["sentence"]


def test_corrections_without_their_prompts_are_reported_and_change_nothing(school: Shop) -> None:
    school.serve(40, prompt=None)
    school.append([], [Feedback("c", f"req_{0:032x}", school.began, "category", "cooking", tenant=first_tenant())])
    assert "set log.store_prompts" in school.report("retrain")["router"]["sentence"]


def first_tenant() -> str:
    """Of the first request that a shop serves."""
    random = np.random.default_rng(0)
    random.integers(len(CATEGORIES))
    return TENANTS_OF_SHOP[int(random.integers(len(TENANTS_OF_SHOP)))]


TENANTS_OF_SHOP = ("a", "b", "c", "d")
