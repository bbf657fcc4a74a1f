"""Parts of the previous snapshot that a new one keeps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from coe.artifacts.active_state import ActiveState
from coe.experts import ReplicatedExpert
from coe.experts.http.client import Client
from coe.planning.problem import declared_assignment
from coe.routing.conversation import Affinity
from coe.settings import Settings
from gateway.access import IssuedKeyWatch, open_limiter
from gateway.access.key_store import KeyStore
from gateway.shared_store import MemoryStore
from gateway.snapshot import SnapshotBuilder
from tests.fakes import WordRouter, registry_of

pytestmark = pytest.mark.anyio


def in_use_of(**changes: Any) -> ActiveState:
    registry, router = registry_of(**changes), WordRouter()
    return ActiveState(registry, router, declared_assignment(registry, router.categories), 0.0, Path())


async def test_unchanged_experts_go_on_and_others_are_closed_when_no_request_can_use_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, closed = 0.0, list[str]()
    monkeypatch.setattr("gateway.snapshot.time.monotonic", lambda: now)

    async def close(self: ReplicatedExpert) -> None:
        closed.append(self.name)

    monkeypatch.setattr(ReplicatedExpert, "aclose", close)
    async with Client() as session, open_limiter("file", home=tmp_path) as limiter:
        with ThreadPoolExecutor(1) as threads:
            parts = {"session": session, "threads": threads, "limiter": limiter, "affinity": Affinity()}
            issued = IssuedKeyWatch(KeyStore(MemoryStore()))
            builder = SnapshotBuilder(Settings.read({}), issued=issued, **parts)
            builder.build(in_use_of(policy={"timeout": 60}))
            before = dict(builder.experts)
            experts = [dict(spec.model_dump(exclude_none=True, exclude={"api_key"})) for spec in registry_of().experts]
            experts[0]["base_url"] = "http://127.0.0.1:10/v1"
            builder.build(in_use_of(experts=experts, policy={"timeout": 1}))
            kept = [name for name, expert in builder.experts.items() if expert is before[name]]
            assert kept == ["painter", "generalist"]
            now = 59.0
            await builder.close_retired()
            assert closed == []
            now = 60.0
            await builder.close_retired()
            assert closed == ["coder"]
