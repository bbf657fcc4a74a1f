"""Corrected categories from the log to the router in use: the round, the list, the withdrawal and full training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import routers
from coe.errors import DataError
from coe.learning import router_round
from coe.learning.round import job_lock
from coe.records.record import Feedback
from tests.cli.logged_service import PROMPTS, LoggedService
from tests.learning.samples import record

KNIGHT, DOUGH = "pawn takes knight", "bake the bread dough"


@pytest.fixture
def storing(service: LoggedService) -> LoggedService:
    """A service that stores prompts."""
    lines = [json.dumps({"prompt": prompt, "category": category}) for prompt, category in PROMPTS]
    service.config.with_name("prompts.jsonl").write_text("\n".join(lines))
    service.declare(router={"training_data": "prompts.jsonl"}, log={"url": service.url, "store_prompts": True})
    return service


def correct(service: LoggedService, texts: Sequence[str], category: str) -> None:
    records = [
        record(f"req {text}", time=service.began, prompt=text, category="general", expert="generalist", tenant="a")
        for text in texts
    ]
    feedback = [Feedback(f"c {text}", f"req {text}", service.began, "category", category, tenant="a") for text in texts]
    service.append(records, feedback)


def routed(service: LoggedService, text: str) -> dict[str, Any]:
    return service.report("route", text, "--explain")


def test_a_round_makes_corrections_exemplars_of_a_version_and_each_can_be_withdrawn(
    storing: LoggedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_round, "MAX_CHANGED_SHARE", 1.0)  # the tiny encoder finds much alike
    before, was = storing.store("router").in_use(), routed(storing, KNIGHT)
    wanted = next(name for name in ("astronomy", "football") if name != was["category"])
    assert was["correction"] is None
    correct(storing, [KNIGHT], wanted)
    correct(storing, [DOUGH], "cooking")
    found = storing.report("retrain")["router"]
    assert found["sentence"].startswith("promoted: ")
    assert found["report"]["left_out"]["followed without an exemplar"] >= 1
    assert storing.store("router").in_use() == found["version"] != before
    now = routed(storing, KNIGHT)
    assert (now["category"], now["correction"]["digest"]) == (wanted, routers.prompt_digest(KNIGHT))
    assert f"corrected   {routers.prompt_digest(KNIGHT)[:12]}: {wanted}" in storing.run("route", KNIGHT, "--explain")
    assert "no correction is new" in storing.report("retrain")["router"]["sentence"]

    with job_lock(storing.url, home=storing.settings.home):  # a list needs no lock
        listed = {one["prompt"]: one for one in storing.report("corrections")["corrections"]}
    with pytest.raises(DataError, match=r"'0000': it is the beginning of 0 IDs .*; `coe corrections` lists them"):
        storing.run("corrections", "--remove", "0000")
    assert (listed[KNIGHT]["exemplar"], listed[DOUGH]["exemplar"]) == (True, False)
    removed = storing.report("corrections", "--remove", listed[KNIGHT]["id"][:12])["withdrawn"]
    assert removed == [listed[KNIGHT]]
    assert routed(storing, KNIGHT)["category"] == was["category"]
    assert KNIGHT not in storing.run("corrections")
    assert storing.report("rollback", "router")["in_use"] == found["version"]
    assert routed(storing, KNIGHT)["category"] == wanted


def test_corrections_that_change_other_prompts_are_left_out(
    storing: LoggedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_round, "MAX_CHANGED_SHARE", 0.0)
    correct(storing, [prompt for prompt, category in PROMPTS if category == "cooking"][:3], "football")
    assert "would change other prompts" in storing.report("retrain")["router"]["sentence"]


def test_full_training_takes_the_corrections_as_prompts(
    storing: LoggedService, built: tuple[Path, dict[str, Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = list[routers.Example]()

    def build(examples: Sequence[routers.Example], *, out: Path, **_: object) -> dict[str, Any]:
        trained.extend(examples)
        shutil.copytree(built[0], out, dirs_exist_ok=True)
        return {}

    monkeypatch.setattr(routers, "build", build)
    known, category = PROMPTS[0]
    correct(storing, [KNIGHT, known], "football")
    assert storing.report("train")["metrics"]["corrections"] <= 2
    assert routers.Example(KNIGHT, "football") in trained
    assert [one.category for one in trained if one.prompt == known] == ["football"] != [category]
