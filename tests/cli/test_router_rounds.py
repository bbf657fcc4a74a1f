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

import routers
from coe.core import Neighbour, Prediction
from coe.learning import router_round
from coe.learning.router_round import Pair
from coe.records.record import Feedback
from tests.cli.logged_service import PROMPTS, LoggedService
from tests.learning.samples import record

TENANTS = ("a", "b", "c")
CATEGORIES = ("cooking", "astronomy", "football", "general")


class WordVotes:
    """A router that predicts the category of the training prompts with the same words."""

    categories = CATEGORIES
    version = "word-votes"

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._votes: dict[str, list[int]] = {}
        for prompt, category in pairs:
            for word in prompt.split():
                self._votes.setdefault(word, [0] * len(CATEGORIES))[CATEGORIES.index(category)] += 1

    def predict_fast(self, text: str, *, force: bool = False) -> Prediction:
        votes = np.array([np.array(self._votes[w]) / sum(self._votes[w]) for w in text.split() if w in self._votes])
        scores = votes.sum(axis=0) + 0.01 if len(votes) else np.ones(len(CATEGORIES))
        return Prediction((scores / scores.sum()).astype(np.float32), "words")

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]:
        return [self.predict_fast(text) for text in texts]

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        return []


@pytest.fixture
def training_service(
    service: LoggedService, built: tuple[Path, dict[str, Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> LoggedService:
    """A service that stores prompts. Training is replaced by a function that writes the files of a tiny router."""
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in PROMPTS]
    service.config.with_name("prompts.jsonl").write_text("\n".join(lines))
    service.declare(router={"training_data": "prompts.jsonl"}, log={"url": service.url, "store_prompts": True})

    trained: dict[Path, Sequence[Pair]] = {}
    load = routers.load

    def build(pairs: Sequence[Pair], out: Path, **_: object) -> Mapping[str, Any]:
        shutil.copytree(built[0], out, dirs_exist_ok=True)
        trained[out] = pairs
        return {}

    def load_trained(out: Path, **options: Any) -> Any:
        return WordVotes(trained[out]) if out in trained else load(out, **options)

    monkeypatch.setattr(router_round, "build_router", build)
    monkeypatch.setattr(routers, "load", load_trained)
    return service


def correct(service: LoggedService, texts: Sequence[str], category: str) -> None:
    records = [
        record(
            f"req_{category}_{number}",
            time=service.began + number,
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
    service.append(records, events)


def test_corrections_of_many_tenants_train_the_router_and_are_recorded(training_service: LoggedService) -> None:
    before = training_service.store("router").in_use()
    correct(training_service, [f"pawn takes rook on field{n}" for n in range(60)], "astronomy")
    found = training_service.report("retrain")["router"]
    assert found["promoted"], found["sentence"]
    assert training_service.store("router").in_use() == found["version"] != before
    folder = Path(found["folder"])
    assert json.loads((folder / "report.json").read_text())["promoted"]
    correct(training_service, ["knight to general"], "cooking")
    assert "corrections are new, and a round takes 20" in training_service.report("retrain")["router"]["sentence"]
    assert training_service.report("rollback", "router")["in_use"] == before


def test_corrections_that_do_not_help_are_kept_out_with_a_report(training_service: LoggedService) -> None:
    correct(training_service, [f"bake the dough number {n}" for n in range(40)], "astronomy")
    found = training_service.report("retrain")["router"]
    assert not found["promoted"]
    assert found["sentence"].startswith("kept: ")
    assert "no correction is new" in next_round(training_service)


def next_round(service: LoggedService) -> str:
    """The sentence of a round whose only new feedback is a rating."""
    service.serve(1)
    sentence: str = service.report("retrain")["router"]["sentence"]
    return sentence
