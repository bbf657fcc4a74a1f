"""`coe train --tune-encoder` reports both encoders, and `coe retrain` keeps the tuned one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coe.cli.learning.train import tuning_sentence
from coe.errors import DataError
from routers.cascade import NETWORK, UNTUNED_NETWORK
from routers.training import build, contrastive, tuned_encoder
from tests.cli.logged_service import PROMPTS, LoggedService
from tests.cli.test_router_rounds import correct


@pytest.fixture
def tuning_service(service: LoggedService, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> LoggedService:
    """A service that stores prompts, whose encoder is tuned in a few steps."""
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in PROMPTS]
    service.config.with_name("prompts.jsonl").write_text("\n".join(lines))
    router = {"training_data": "prompts.jsonl", "encoder": str(tiny_encoder)}
    service.declare(router=router, log={"url": service.url, "store_prompts": True})
    monkeypatch.setattr(contrastive, "STEPS", 20)
    monkeypatch.setattr(contrastive, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(build, "unusable", lambda: "not here")  # the stage for other languages takes longest
    return service


def test_a_round_keeps_the_tuned_encoder(tuning_service: LoggedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_encoder, "MIN_GAIN", -1.0)
    said = tuning_service.run("train", "--tune-encoder")
    assert "the tuned encoder is in use: " in said
    assert "on 43 held-out prompts (" in said
    before = tuning_service.store("router").current()
    assert before is not None
    assert {NETWORK, UNTUNED_NETWORK} <= set(before.manifest.files)
    assert before.manifest.metrics["tuning"]["held_out"] == 43
    correct(tuning_service, [f"pawn takes rook on field{n}" for n in range(60)], "astronomy")
    found = tuning_service.report("retrain")["router"]
    assert found["promoted"], found["sentence"]
    after = tuning_service.store("router").current()
    assert after is not None
    assert after.manifest.version == found["version"] != before.manifest.version
    for name in (NETWORK, UNTUNED_NETWORK):
        assert after.manifest.files[name] == before.manifest.files[name]
    assert tuning_service.report("route", "bake the bread")["category"] == "cooking"


def test_the_report_says_why_an_encoder_is_not_used() -> None:
    figures = {"tuned": 0.8, "untuned": 0.81, "held_out": 100, "difference": -0.01, "standard_error": 0.02}
    assert tuning_sentence({"in_use": False, **figures}) == (
        "the tuned encoder is not in use, because it does not route better by more than a standard error: 80.0% right "
        "with it, 81.0% without, on 100 held-out prompts (-1.0 ± 2.0 points)"
    )
    assert tuning_sentence({"in_use": True}) == "it keeps the tuned encoder of --encoder"


def test_a_category_with_few_prompts_is_named(tuning_service: LoggedService) -> None:
    few = [pair for number, pair in enumerate(PROMPTS) if pair[1] != "general" or number % 3 == 0]
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in few]
    tuning_service.config.with_name("prompts.jsonl").write_text("\n".join(lines))
    before = tuning_service.store("router").in_use()
    with pytest.raises(DataError, match=r"needs 20 English prompts of each category; too few: general \(12\)"):
        tuning_service.run("train", "--tune-encoder")
    assert tuning_service.store("router").in_use() == before
