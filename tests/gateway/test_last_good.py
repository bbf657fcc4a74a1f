"""The last good state that a gateway keeps for workers that start again after a crash."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

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
from gateway.process.last_good import LOCK, LastGood, last_good_folder
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
    """What another worker of the gateway would start with."""
    found = list[KeptState]()

    def read(settings: Settings, previous: None, *, kept: KeptState) -> ActiveState:
        found.append(kept)
        return state_of(settings, kept.registry(settings), str(kept.versions[ROUTER]))

    assert LastGood(folder, settings, read=read).load() is not None
    return found[0]


def keep(folder: Path, settings: Settings, **versions: str | None) -> None:
    def read(settings: Settings, previous: None, *, kept: KeptState) -> ActiveState:
        raise AssertionError("it is kept, not read")

    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    state = state_of(settings, registry, str(versions[ROUTER]))
    LastGood(folder, settings, read=read).keep(state, versions)


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


def test_a_damaged_state_does_not_prevent_a_start_with_the_files_in_use(
    settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read(*_: object, **__: object) -> ActiveState:
        raise ArtifactError("no such version")

    last_good = LastGood(folder, settings, read=read)
    assert last_good.load() is None
    assert not caplog.messages
    keep(folder, settings, router=published(settings, ROUTER, "r"))
    assert last_good.load() is None
    assert caplog.messages[0].endswith("starts with the files in use: coe.errors.ArtifactError: no such version")
    (folder / "state.json").write_text("{")
    assert last_good.load() is None
    assert len(caplog.messages) == 2


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
