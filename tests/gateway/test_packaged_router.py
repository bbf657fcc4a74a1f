"""The router that a wheel carries: used where none is trained and experts.yaml fits it; a start puts it into use."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.artifacts import active_state
from coe.artifacts.store import ArtifactStore
from coe.artifacts.versions import VersionCatalog, consequences_of
from coe.errors import ArtifactError
from coe.registry import load
from coe.settings import Settings
from gateway.main import prepare
from routers.cascade import CONFIG, FORMAT
from tests.fakes import router_json

DECLARED = """\
version: 1
categories: [%s{name: general, description: g}]
experts: [{name: small, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}]
assignment: {general: small}
"""
CODE = "{name: code, description: c}, "


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of a router for code and law, as an installation from a wheel holds it."""
    return ship(tmp_path, monkeypatch, router_format=FORMAT)


def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, router_format: int) -> str:
    store = ArtifactStore(tmp_path / "site-packages", "router")
    with store.draft() as draft:
        (draft / CONFIG).write_bytes(router_json(format=router_format))
        artifact = store.publish(draft, categories=["code", "general", "law"], data="", metrics={"accuracy": 0.8})
    monkeypatch.setattr(active_state, "PACKAGED_ROUTER", artifact.folder)
    return artifact.manifest.version


def settings_of(tmp_path: Path, categories: str = CODE, more: str = "") -> Settings:
    (tmp_path / "experts.yaml").write_text(DECLARED % categories + more)
    return Settings.read({}, config=tmp_path / "experts.yaml")


def test_a_first_start_puts_it_into_use_with_its_origin(tmp_path: Path, shipped: str) -> None:
    settings = settings_of(tmp_path)
    prepare(settings)
    prepare(settings)
    (one,) = VersionCatalog(settings.artifacts, "router").list_versions()["versions"]
    assert (one["version"], one["origin"], one["quality"]) == (shipped, "packaged", 0.8)


def test_categories_that_it_does_not_know_are_refused_by_the_check_and_the_start_with_the_remedy(
    tmp_path: Path,
) -> None:
    settings = settings_of(tmp_path, "{name: art, description: a}, ")
    with pytest.raises(ArtifactError, match=r"^the packaged router knows none of the categories .*; run `coe train`$"):
        consequences_of(settings, load(settings.config, environ={}))
    with pytest.raises(ArtifactError, match=r"knows none of the categories .*; run `coe train`"):
        prepare(settings)
    assert ArtifactStore(settings.artifacts, "router").versions() == ()


@pytest.mark.parametrize(
    "declared", ["encoder: some/model", "training_data: prompts.jsonl", "extra_training_data: more.jsonl"]
)
def test_a_declared_encoder_or_training_set_is_not_the_packaged_one(tmp_path: Path, declared: str) -> None:
    with pytest.raises(ArtifactError, match="no router is trained yet; run `coe train`"):
        prepare(settings_of(tmp_path, more=f"router: {{{declared}}}\n"))
