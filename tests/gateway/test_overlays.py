"""A tenant's overlay in the gateway changes the routing of that tenant's requests only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from coe.artifacts.kinds import OVERLAYS
from coe.artifacts.store import ArtifactStore
from coe.cli.learning.promote import Kind, promote, rollback
from coe.core import Prediction
from coe.errors import ArtifactError
from coe.jobs.rounds.overlay_round import OverlayRound
from coe.jobs.rounds.round import open_job, run_round
from coe.learning.estimation.experience_loader import load_experience
from coe.records.record import RoutingRecord
from coe.routing.classification import OVERLAYS_FILE, Overlay, Overlays
from coe.runtime.active_state import overlays_in_use
from coe.settings import Settings
from tests.access.samples import key_of
from tests.fakes import WordRouter, gateway_of, registry_of
from tests.gateway import words_server
from tests.gateway.served import Served, chat, serving

pytestmark = pytest.mark.anyio

CATEGORIES = WordRouter.categories
KEYS = [key_of(name, tenant=name).model_dump(mode="json") for name in ("alice", "bob")]
SOON = 60.0


def swapping(tenant: str) -> Overlay:
    """An overlay that swaps the categories code and art."""
    return Overlay(tenant, CATEGORIES, np.eye(3)[[1, 0, 2]], np.zeros(3), 0.5)


def published(settings: Settings, *heads: Overlay, router: str = "words") -> str:
    store = ArtifactStore(settings.artifacts, OVERLAYS)
    with store.draft() as draft:
        (draft / OVERLAYS_FILE).write_bytes(b"".join(head.to_json() + b"\n" for head in heads))
        artifact = store.publish(draft, categories=CATEGORIES, data=router, metrics={})
    return artifact.manifest.version


def test_a_prediction_has_the_probabilities_of_the_router_alone() -> None:
    known = Prediction(np.array([0.8, 0.1, 0.1], dtype=np.float32), "predict_fast", 0.7)
    overlays = Overlays("v1", {"alice": swapping("alice")})
    changed = overlays.apply(known, "alice")
    assert (changed.best, changed.stage, changed.in_distribution, changed.overlay_version) == (
        1,
        "predict_fast",
        0.7,
        "v1",
    )
    assert changed.probabilities.dtype == np.float32
    assert changed.router_probabilities is known.probabilities
    assert overlays.apply(known, "bob") is known
    assert overlays.apply(known, None) is known


async def test_the_tenants_requests_are_decided_and_recorded_by_its_posterior() -> None:
    registry = registry_of(access={"keys": KEYS})
    async with gateway_of(registry, overlays=Overlays("v1", {"alice": swapping("alice")})) as gateway:
        experts = {}
        for name in ("alice", "bob"):
            headers = {"content-type": "application/json", "x-api-key": name}
            body = orjson.dumps(chat("auto", text="code"))
            answer = await gateway.post("/v1/chat/completions", body, headers=headers)
            reported = (await gateway.post("/v1/route", body, headers=headers)).json
            experts[name] = answer.headers["x-coe-expert"], reported["expert"], reported["overlay"]
    assert experts == {"alice": ("painter", "painter", "v1"), "bob": ("coder", "coder", "")}
    own, other = gateway.records
    assert (own.tenant, own.overlay, own.category) == ("alice", "v1", "art")
    assert max(own.probabilities, key=own.probabilities.__getitem__) == "art"
    assert own.router_probabilities == other.probabilities
    assert (other.overlay, other.router_probabilities) == ("", None)


async def test_overlays_of_another_router_stay_unused_with_a_log_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.read({}, config=tmp_path / "experts.yaml")
    assert overlays_in_use(settings, WordRouter()).by_tenant == {}
    version = published(settings, swapping("alice"), router="older")
    ArtifactStore(settings.artifacts, OVERLAYS).promote(version)
    with caplog.at_level(logging.WARNING):
        assert overlays_in_use(settings, WordRouter()).by_tenant == {}
    assert f"overlays {version} are of router older, not words: `coe retrain` makes new ones" in caplog.text
    (settings.artifacts / OVERLAYS / version / OVERLAYS_FILE).write_bytes(b"half of")
    with pytest.raises(ArtifactError, match="missing or changed"):
        overlays_in_use(settings, WordRouter())


async def test_one_tenants_corrections_change_its_own_decisions_and_no_other_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.runtime.active_state.load_active_state", words_server.read)
    for module in ("coe.runtime.active_state", "coe.runtime.versions"):
        monkeypatch.setattr(f"{module}.check_router", lambda settings, **_: (None, None))
        monkeypatch.setattr(f"{module}.load_router", lambda *_: WordRouter())
    assignment = {"code": "good", "art": "slow-start", "general": "good"}
    async with serving(tmp_path, access={"keys": KEYS}, assignment=assignment) as served:
        settings = Settings.read({}, config=tmp_path / "experts.yaml")
        for name in ("alice", "bob"):
            asked = [await send_chat(served, name, "code" if number % 2 else "general") for number in range(80)]
            if name == "alice":
                await asyncio.gather(*(correct(served, name, one["x-request-id"], "art") for one in asked[1::2]))
        assert await experts(served, "code") == {"alice": "good", "bob": "good"}
        await served.records(162)

        report = await asyncio.to_thread(retrain, settings)
        assert [one["tenant"] for one in report["tenants"]] == ["alice"]
        await wait_until_status(served, {"alice": "slow-start", "bob": "good"})
        assert await experts(served, "art") == {"alice": "slow-start", "bob": "slow-start"}

        assert {one.tenant for one in await overlaid(served)} == {"alice"}
        await asyncio.to_thread(rollback, Kind.OVERLAYS, config=settings.config)
        await wait_until_status(served, {"alice": "good", "bob": "good"})
        await asyncio.to_thread(promote, Kind.OVERLAYS, config=settings.config)
        await wait_until_status(served, {"alice": "slow-start", "bob": "good"})

        other = published(settings, swapping("alice"), router="older")
        with pytest.raises(ArtifactError, match="of router older, not words"):
            promote(Kind.OVERLAYS, other, config=settings.config)


async def send_chat(served: Served, key: str, text: str) -> Mapping[str, str]:
    """The response's headers."""
    body, url = chat("auto", stream=True, text=text), f"{served.url}/v1/chat/completions"
    async with served.client.post(url, json=body, headers={"x-api-key": key}) as response:
        await response.read()
        return response.headers


async def correct(served: Served, key: str, request_id: str, category: str) -> None:
    said = {"request_id": request_id, "category": category}
    async with served.client.post(f"{served.url}/v1/feedback", json=said, headers={"x-api-key": key}) as response:
        assert response.status == 200


async def experts(served: Served, text: str) -> dict[str, str]:
    return {name: (await send_chat(served, name, text))["x-coe-expert"] for name in ("alice", "bob")}


async def wait_until_status(served: Served, wanted: dict[str, str]) -> None:
    async with asyncio.timeout(SOON):
        while await experts(served, "code") != wanted:
            await asyncio.sleep(0.02)


def retrain(settings: Settings) -> Any:
    now = time.time()
    with open_job(settings, since=0.0, now=now, dry_run=False) as job:
        pages, said = job.logs.records(until=now), job.logs.feedback()
        names = job.registry.expert_names
        known = load_experience(pages, said, categories=CATEGORIES, experts=names).experience
        outcome = run_round(OverlayRound(known), job)
    assert outcome is not None
    assert outcome.promoted
    return outcome.report


async def overlaid(served: Served) -> list[RoutingRecord]:
    """Wait for records of requests whose posterior an overlay changed, and return them."""
    async with asyncio.timeout(SOON):
        while not (found := [one for one in await served.records(1) if one.overlay]):
            await asyncio.sleep(0.02)
    return found
