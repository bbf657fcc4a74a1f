"""The last good state that a gateway keeps for workers that start again after a crash."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import orjson
import pytest

from coe.artifacts.kinds import ASSIGNMENT, GATE, ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, ConfigError
from coe.experts.http.client import Client
from coe.mapping.problem import declared_assignment
from coe.registry import Registry, load
from coe.retrieval.gate import GATE_FILE
from coe.routing.conversation import Affinity
from coe.runtime.active_state import ActiveState, assignment_in_use, gate_in_use
from coe.runtime.api_keys import ADMIN_KEY_NAME, create_admin_key, digest_of, with_admin_key
from coe.runtime.kept_state import KeptState
from coe.runtime.key_store import SqliteKeyStore
from coe.settings import Endpoint, Settings
from gateway.access import IssuedKeyWatch, open_limiter
from gateway.process import reload as reload_module
from gateway.process.last_good import LOCK, LastGood, last_good_folder
from gateway.process.reload import Reload
from gateway.process.watched_files import file_states, watched_files
from gateway.serving_state import Wiring
from tests.admin.samples import measured_registry, planned, settings_in
from tests.fakes import WordRouter, registry_of
from tests.retrieval.gates import CATEGORIES, WIDTH, gate_of

pytestmark = pytest.mark.anyio

DECLARATION = """\
version: 1
categories: [{name: code, description: c}, {name: general, description: g}]
experts:
  - {name: small, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1', api_key: '${SECRET}'}
"""
ENDPOINT = {"base_url": "http://127.0.0.1:7/v1", "model": "m"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    config, endpoints = tmp_path / "experts.yaml", tmp_path / "endpoints.json"
    config.write_text(DECLARATION)
    endpoints.write_bytes(orjson.dumps({"local": ENDPOINT}))
    environ = {
        "SECRET": "a literal secret",
        "COE_ENDPOINTS": str(endpoints),
        "COE_ADMIN_KEY_FILE": str(tmp_path / "admin"),
    }
    settings = Settings.read(environ, config=config)
    create_admin_key(settings)
    return settings


@pytest.fixture
def folder(settings: Settings) -> Iterator[Path]:
    with last_good_folder(settings.home) as folder:
        assert folder is not None
        yield folder


def published(settings: Settings, kind: str, content: str) -> str:
    store = ArtifactStore(settings.artifacts, kind)
    with store.draft() as draft:
        (draft / "file").write_text(content)
        return store.publish(draft, categories=("general",), data="", metrics={}).manifest.version


def state_of(settings: Settings, registry: Registry, router: str) -> ActiveState:
    assignment = declared_assignment(registry, registry.category_names)
    place, text = settings.artifacts / ROUTER / router, settings.config.read_text()
    return ActiveState(registry, WordRouter(), assignment, 0.0, place, declaration=text)


def kept_by(folder: Path, settings: Settings) -> KeptState:
    """Return the kept state with which another worker of the gateway would start."""
    found = list[KeptState]()

    def read(settings: Settings, previous: None, *, kept: KeptState) -> ActiveState:
        found.append(kept)
        return state_of(settings, kept.registry(settings), str(kept.versions[ROUTER]))

    assert LastGood(folder, settings, read=read, restores=True).load() is not None
    return found[0]


def keep(folder: Path, settings: Settings, **versions: str | None) -> None:
    def read(settings: Settings, previous: None, *, kept: KeptState) -> ActiveState:
        raise AssertionError("it is kept, not read")

    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    state = state_of(settings, registry, str(versions[ROUTER]))
    LastGood(folder, settings, read=read, restores=True).keep(state, versions)


def test_everything_that_a_start_reads_is_kept_without_the_values_of_the_environment(
    settings: Settings, folder: Path
) -> None:
    router, key = published(settings, ROUTER, "r"), (settings.config.parent / "admin").read_text().strip()
    keep(folder, settings, router=router, assignment=None)
    for name in ("experts.yaml", "endpoints.json", "admin"):
        (settings.config.parent / name).write_text("invalid")
    kept = kept_by(folder, settings)
    registry = kept.registry(settings)
    assert registry.expert_names == ("small",)
    assert {one.name: one.sha256 for one in registry.access.keys} == {ADMIN_KEY_NAME: digest_of(key)}
    assert kept.endpoints == {"local": (Endpoint(**ENDPOINT),)}
    assert kept.versions == {ROUTER: router, ASSIGNMENT: None}
    assert kept.artifact(ASSIGNMENT) is None
    content = (folder / "state.json").read_text()
    assert key not in content
    assert "a literal secret" not in content
    assert (folder.stat().st_mode & 0o777, (folder / "state.json").stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_version_is_read_where_it_is_and_from_its_copy_once_it_is_damaged(settings: Settings, folder: Path) -> None:
    router = published(settings, ROUTER, "r")
    keep(folder, settings, router=router)
    kept = kept_by(folder, settings)
    assert kept.router().folder == settings.artifacts / ROUTER / router
    (settings.artifacts / ROUTER / router / "file").write_text("damaged")
    assert kept.router().folder == folder / ROUTER / router
    (folder / ROUTER / router / "file").write_text("damaged too")
    with pytest.raises(ArtifactError, match="changed since it was published"):
        kept.router()


def test_copies_that_are_not_in_use_any_more_are_deleted(settings: Settings, folder: Path) -> None:
    old, new, plan = (published(settings, kind, kind + str(one)) for one, kind in enumerate((ROUTER, ROUTER, "gate")))
    keep(folder, settings, router=old, gate=plan)
    (folder / ".draft-of-a-killed-worker").mkdir()
    keep(folder, settings, router=new, gate=None)
    assert {str(path.relative_to(folder)) for path in folder.rglob("file")} == {f"{ROUTER}/{new}/file"}
    assert not list(folder.glob(".draft*"))


def test_the_plan_and_the_gate_of_a_kept_state_are_loaded_whatever_is_promoted_since(tmp_path: Path) -> None:
    registry = measured_registry()
    settings = settings_in(tmp_path, registry)
    plan, assignment = planned(settings, registry)
    with ArtifactStore(settings.artifacts, GATE).draft() as draft:
        gate_of(1.0).save(draft / GATE_FILE)
        gate = ArtifactStore(settings.artifacts, GATE).publish(draft, categories=CATEGORIES, data="", metrics={})
    versions = {ASSIGNMENT: plan, GATE: gate.manifest.version}
    kept = KeptState("", None, {}, versions, settings.artifacts, tmp_path / "copies")
    (settings.artifacts / ASSIGNMENT / "current").write_text("000000000000")
    with pytest.raises(ArtifactError):
        assignment_in_use(settings, registry, CATEGORIES)
    assert assignment_in_use(settings, registry, CATEGORIES, kept).assignment.choice == assignment.choice
    in_use = ActiveState(registry, WordRouter(), assignment, 0.0, tmp_path, kept=kept)
    assert gate_in_use(settings, in_use, dimensions=WIDTH)[1] == gate.manifest.version
    assert gate_in_use(settings, replace(in_use, kept=None), dimensions=WIDTH) == (None, "")


async def test_a_kept_state_is_served_with_the_addresses_and_the_versions_that_it_had(settings: Settings) -> None:
    assert settings.endpoints_file is not None
    settings.endpoints_file.write_text("invalid")
    local = {"name": "local", "model": "m", "runtime": "vllm"}
    registry = registry_of(experts=[local], assignment={"general": "local"})
    kept = KeptState("", None, {"local": (Endpoint(**ENDPOINT),)}, {GATE: "g"}, settings.artifacts, Path())
    assignment = declared_assignment(registry, CATEGORIES)
    in_use = ActiveState(registry, WordRouter(), assignment, 0.0, Path(), kept=kept)
    async with Client() as session, open_limiter("memory", home=settings.home) as limiter:
        with ThreadPoolExecutor(1) as threads:
            issued = IssuedKeyWatch(SqliteKeyStore(settings.home / "keys.sqlite"))
            wiring = Wiring(
                settings, session=session, threads=threads, limiter=limiter, affinity=Affinity(), issued=issued
            )
            assert wiring.serving(in_use).versions[GATE] == "g"
            assert [one.root for one in wiring.experts["local"].replicas] == ["http://127.0.0.1:7"]
            with pytest.raises(ConfigError, match="COE_ENDPOINTS"):
                wiring.serving(replace(in_use, kept=None))
            await wiring.aclose()


def test_a_worker_of_the_first_start_keeps_the_state_and_does_not_load_it(settings: Settings, folder: Path) -> None:
    keep(folder, settings, router=published(settings, ROUTER, "r"))
    read = Mock()
    assert LastGood(folder, settings, read=read, restores=False).load() is None
    read.assert_not_called()
    assert LastGood(folder, settings, read=read, restores=True).load() is not None


def test_a_damaged_state_does_not_prevent_a_start_with_the_files_in_use(
    settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read(*_: object, **__: object) -> ActiveState:
        raise ArtifactError("no such version")

    last_good = LastGood(folder, settings, read=read, restores=True)
    assert last_good.load() is None
    assert not caplog.messages
    keep(folder, settings, router=published(settings, ROUTER, "r"))
    assert last_good.load() is None
    assert caplog.messages[0].endswith("starts with the files in use: coe.errors.ArtifactError: no such version")
    (folder / "state.json").write_text("{")
    assert last_good.load() is None
    assert len(caplog.messages) == 2


def test_a_damaged_gate_of_the_kept_state_is_found_before_the_state_is_used(
    settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = published(settings, GATE, "g")
    index: Any = "the documents, which are searched with the gate"

    def read(settings: Settings, previous: None, *, kept: KeptState) -> ActiveState:
        return replace(state_of(settings, kept.registry(settings), "r"), index=index)

    keep(folder, settings, router=published(settings, ROUTER, "r"), gate=gate)
    last_good = LastGood(folder, settings, read=read, restores=True)
    assert last_good.load() is not None
    for place in (settings.artifacts, folder):
        (place / GATE / gate / "file").write_text("damaged")
    assert last_good.load() is None
    assert "changed since it was published" in caplog.text


def test_a_state_that_cannot_be_kept_leaves_no_older_one(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(folder, settings, router=published(settings, ROUTER, "old"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", Mock(side_effect=OSError(errno.ENOSPC, "no space left")))
        with pytest.raises(OSError, match="no space left"):
            keep(folder, settings, router=published(settings, ROUTER, "new"))
    assert not [path for path in folder.iterdir() if path.name == "state.json" or path.name.startswith(".draft")]


def test_after_the_state_folder_was_deleted_the_next_state_is_kept_again_and_no_other_start_deletes_it(
    settings: Settings, folder: Path
) -> None:
    keep(folder, settings, router=published(settings, ROUTER, "old"))
    shutil.rmtree(settings.home)
    router = published(settings, ROUTER, "new")
    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    worker = LastGood(folder, settings, read=Mock(), restores=False)
    worker.keep(state_of(settings, registry, router), {ROUTER: router})
    with last_good_folder(settings.home) as other:
        assert other is not None
        assert kept_by(folder, settings).versions == {ROUTER: router}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert worker._lock is not None
    os.close(worker._lock)  # as at the end of the process


def test_a_recreated_folder_is_kept_until_each_worker_that_recreated_it_has_ended(
    settings: Settings, folder: Path
) -> None:
    shutil.rmtree(settings.home)
    workers = [LastGood(folder, settings, read=Mock(), restores=False) for _ in range(2)]
    for worker in workers:  # both found that the folder was missing
        worker._recreate()
    for worker, exists_afterwards in zip(workers, (True, False), strict=True):
        assert worker._lock is not None
        os.close(worker._lock)  # as at the end of the process
        with last_good_folder(settings.home):
            assert folder.exists() is exists_afterwards


def test_a_failure_to_recreate_the_folder_again_keeps_the_lock_file_open(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = LastGood(folder, settings, read=Mock(), restores=False)
    worker._recreate()
    assert worker._lock is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", Mock(side_effect=OSError(errno.ENOSPC, "no space left")))
        with pytest.raises(OSError, match="no space left"):
            worker._recreate()
    os.close(worker._lock)  # fails if its number may already belong to another file


def test_the_copy_of_a_read_only_version_can_be_moved_and_deleted(settings: Settings, folder: Path) -> None:
    router = published(settings, ROUTER, "r")
    version = settings.artifacts / ROUTER / router
    (version / "file").chmod(0o444)
    version.chmod(0o555)
    keep(folder, settings, router=router)
    copy = folder / ROUTER / router
    assert (copy.stat().st_mode & 0o700, (copy / "file").stat().st_mode & 0o600) == (0o700, 0o600)
    version.chmod(0o755)


async def test_the_state_at_the_start_is_kept_also_if_the_files_became_invalid_during_it(settings: Settings) -> None:
    def read(*_: object) -> ActiveState:
        raise ConfigError("invalid by now")

    router = published(settings, ROUTER, "r")
    started = state_of(settings, with_admin_key(load(settings.config, environ=settings.environ), settings), router)
    current: Any = SimpleNamespace(serving=SimpleNamespace(versions={ROUTER: router}), reload_error=None)
    wiring: Any = SimpleNamespace(close_retired=AsyncMock())
    last_good = Mock(spec=LastGood)
    reload = Reload(current, settings=settings, in_use=started, wiring=wiring, read=read, last_good=last_good)
    async with reload.watching(since=()), asyncio.timeout(60):
        while not last_good.keep.called:
            await asyncio.sleep(0.01)
    last_good.keep.assert_called_once_with(started, {ROUTER: router})
    assert current.reload_error == "invalid by now"


async def test_a_file_that_is_written_during_the_start_is_read_once_and_complete(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, settled = list[str](), Reload._settled_states

    def read(*_: object) -> ActiveState:
        texts.append(settings.config.read_text())
        raise ConfigError("not read further")

    async def finish(reload: Reload) -> Any:
        settings.config.write_text("version: 1  # complete")
        return await settled(reload)

    monkeypatch.setattr(Reload, "_settled_states", finish)
    started = state_of(settings, with_admin_key(load(settings.config, environ=settings.environ), settings), "none")
    settings.config.write_text("version: ")
    current: Any = SimpleNamespace(serving=SimpleNamespace(versions={}), reload_error=None)
    wiring: Any = SimpleNamespace(close_retired=AsyncMock())
    reload = Reload(current, settings=settings, in_use=started, wiring=wiring, read=read)
    async with reload.watching(since=()), asyncio.timeout(60):
        while wiring.close_retired.call_count < 3:  # twice after the start
            await asyncio.sleep(0.01)
    assert texts == ["version: 1  # complete"]


async def test_a_change_at_any_moment_of_the_start_is_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, read_digests = list[str](), reload_module.digests
    started = state_of(settings, with_admin_key(load(settings.config, environ=settings.environ), settings), "none")
    since = file_states(watched_files(settings))
    wiring: Any = SimpleNamespace(close_retired=AsyncMock())

    def read(*_: object) -> ActiveState:
        texts.append(settings.config.read_text())
        raise ConfigError("not read further")

    def changed_meanwhile(files: tuple[Path, ...]) -> Any:
        monkeypatch.setattr(reload_module, "digests", read_digests)
        settings.config.write_text("version: 1  # changed")
        return read_digests(files)

    monkeypatch.setattr(reload_module, "digests", changed_meanwhile)
    current: Any = SimpleNamespace(serving=SimpleNamespace(versions={}), reload_error=None)
    reload = Reload(current, settings=settings, in_use=started, wiring=wiring, read=read)
    async with reload.watching(since=since), asyncio.timeout(60):
        while not texts and wiring.close_retired.call_count < 3:  # twice after the start
            await asyncio.sleep(0.01)
    assert texts == ["version: 1  # changed"]


def test_each_gateway_has_a_folder_of_its_own_until_it_ends(tmp_path: Path) -> None:
    with last_good_folder(tmp_path) as first, last_good_folder(tmp_path) as second:
        assert first is not None
        assert second is not None
        killed = first.parent / "run-killed"
        killed.mkdir()
        (killed / "state.json").write_text("{}")
        starting = first.parent / "run-other"
        starting.mkdir()
        with (starting / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with last_good_folder(tmp_path) as third:
                assert third is not None
                assert sorted(first.parent.glob("[!.]*")) == sorted((first, second, third, starting))
    assert list(first.parent.glob("[!.]*")) == [starting]


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "last-good").write_text("a file in its place")
    with caplog.at_level(logging.WARNING), last_good_folder(tmp_path) as folder:
        assert folder is None
    assert "is not kept for workers that crash" in caplog.text
