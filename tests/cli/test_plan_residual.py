"""`coe plan` finds what texts say beyond their categories; `coe route` and `coe retrain` use it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe.artifacts.active_state import load_active_state
from coe.planning.residual import Evidence
from tests.cli.logged_service import LoggedService
from tests.routers.conftest import COMMON, WORDS

BAKING, STEWING = WORDS["cooking"][:6], WORDS["cooking"][6:]


def texts(words: tuple[str, ...], count: int) -> list[str]:
    rng = random.Random(" ".join(words))
    return [" ".join((*rng.sample(COMMON, 2), *rng.sample(words, 4))) for _ in range(count)]


def scored(folder: Path, *, hidden: bool) -> Path:
    """Probes of three categories. If something is `hidden`, the chef alone bakes and the generalist alone stews."""
    folder.mkdir()
    prompts, scores = [], []
    groups = [("cooking", BAKING), ("cooking", STEWING), ("astronomy", WORDS["astronomy"]), ("general", COMMON)]
    for number, (category, words) in enumerate(groups):
        for row, text in enumerate(texts(words, 100)):
            one = {"benchmark": "own", "prompt_id": f"{words[0]}{row}"}
            prompts.append({**one, "prompt": text, "category": category, "label": ""})
            baker = number == 0 if hidden and number < 2 else row % 3 == 0
            right = {"chef": baker, "generalist": not baker}
            scores += [{**one, "model": name, "score": int(is_right)} for name, is_right in right.items()]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    return folder


def route(service: LoggedService, text: str) -> dict[str, Any]:
    return service.report("route", text, "--explain")


def test_texts_of_one_category_get_the_expert_that_measured_prompts_like_them_show(
    service: LoggedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = service.report("plan", scored(tmp_path / "scores", hidden=True))
    assert report["residual"]["refused"] == ""
    assert report["residual"]["gain"] > 2 * report["residual"]["error"] > 0
    assert (service.store().published(str(service.store().in_use())).folder / "residual.npz").exists()
    new = {name: texts(words, 110)[100:] for name, words in (("chef", BAKING), ("generalist", STEWING))}
    routed = {name: [route(service, text) for text in of] for name, of in new.items()}
    share = {name: sum(one["expert"] == "chef" for one in found) / len(found) for name, found in routed.items()}
    assert share["chef"] > 0.8, share
    assert share["generalist"] < 0.2, share
    baked = routed["chef"][0]
    nearest = baked["measured"][0]
    assert nearest["prompt_id"].startswith(BAKING[0])
    assert nearest["scores"] == {"chef": 1.0, "generalist": 0.0}
    assert nearest["text"] in texts(BAKING, 100)
    printed = service.run("route", new["chef"][0], "--explain")
    assert "measured    bake" in printed
    assert nearest["text"] in printed
    monkeypatch.setattr("coe.artifacts.active_state.encoder_digest", lambda router: "of another router")
    assert load_active_state(service.settings).assignment.residual is None


def log_rated(service: LoggedService, count: int) -> None:
    """Rated requests of two categories. In one of them, the chef bakes well and the generalist stews well."""
    rng, topics = random.Random(0), (texts(BAKING, count), texts(STEWING, count))
    records, events = [], []
    for number, (record, event) in enumerate(service._requests(count, (), {})):
        if record.category not in ("cooking", "astronomy"):
            continue
        topic = rng.randrange(2)
        if record.category == "cooking":
            object.__setattr__(record, "prompt", topics[topic][number])
            chance = 0.9 if (topic == 0) == (record.expert == "chef") else 0.2
            event = replace(event, value=float(rng.random() < chance))
        records.append(record)
        events.append(event)
    service.append(records, events)


def test_ratings_give_a_plan_the_residual_that_its_probes_alone_did_not(
    service: LoggedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("coe.planning.residual._evidence", lambda *_: Evidence(0.0, 0.0, "it shows too little"))
        service.run("plan", scored(tmp_path / "scores", hidden=True))
    before = load_active_state(service.settings).assignment
    assert before.residual is None
    log_rated(service, 1200)
    found = service.retrain()
    assert found["promoted"], found["report"]["residual"]
    assert "the residual with rated requests is used" in found["sentence"]
    plan = load_active_state(service.settings).assignment
    assert plan.residual is not None
    assert plan.choice == before.choice
    measured = [text for _, text in plan.residual.prompts if text is not None]
    assert len(plan.residual.prompts) > len(measured) == 400
    new = {name: texts(words, 1215)[1200:] for name, words in (("chef", BAKING), ("generalist", STEWING))}
    routed = [(name, route(service, text)) for name, of in new.items() for text in of]
    assert np.mean([one["expert"] == name for name, one in routed]) > 0.8
    rated = [near for _, one in routed for near in one["measured"] if near["text"] is None]
    assert rated
    assert all(near["prompt_id"].startswith("req_") and len(near["scores"]) == 1 for near in rated)
    folder = service.store().published(str(service.store().in_use())).folder
    logged = set(texts(STEWING, 1200)) - set(texts(STEWING, 100))
    assert not any(text.encode() in (folder / "residual.npz").read_bytes() for text in logged)
