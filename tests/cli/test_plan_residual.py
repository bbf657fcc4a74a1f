"""`coe plan` finds what texts say beyond their categories; `coe route` uses it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from coe.artifacts.active_state import load_active_state
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
    monkeypatch.setattr("coe.artifacts.active_state.encoder_digest", lambda router: "of another router")
    assert load_active_state(service.settings).assignment.residual is None
