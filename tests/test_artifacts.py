"""Artifacts: sealed, verified, promoted in one step."""

from pathlib import Path

import pytest

from coe.artifacts import Artifact, ArtifactStore
from coe.errors import ArtifactError


def published(store: ArtifactStore, content: str) -> Artifact:
    with store.draft() as draft:
        (draft / "weights.bin").write_text(content)
        return store.publish(draft, categories=["a", "b"], data="d1", metrics={"accuracy": 0.5})


def test_nothing_is_current_before_the_first_promotion(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    assert store.current() is None
    published(store, "one")
    assert store.current() is None


def test_the_promoted_version_is_current_and_keeps_its_manifest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    first, second = published(store, "one"), published(store, "two")
    store.promote(second.manifest.version)
    current = store.current()
    assert current == second
    assert current.manifest.categories == ("a", "b")
    store.promote(first.manifest.version)
    assert store.current() == first


def test_a_forgotten_version_can_be_promoted_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    version = published(store, "one").manifest.version
    store.forget()
    store.promote(version)
    store.forget()
    assert store.current() is None
    store.promote(version)
    assert store.current() is not None


def test_the_same_files_are_the_same_version(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    assert published(store, "one").folder == published(store, "one").folder
    assert published(store, "one").folder != published(store, "two").folder


def test_the_same_files_made_from_other_data_are_another_version(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    first = published(store, "one")
    with store.draft() as draft:
        (draft / "weights.bin").write_text("one")
        second = store.publish(draft, categories=["a", "b"], data="d2", metrics={})
    store.promote(second.manifest.version)
    current = store.current()
    assert current is not None
    assert (first.manifest.data, current.manifest.data) == ("d1", "d2")


def test_an_abandoned_draft_leaves_nothing(tmp_path: Path) -> None:
    with ArtifactStore(tmp_path, "router").draft() as draft:
        (draft / "half").write_text("x")
    assert list((tmp_path / "router").iterdir()) == []


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    artifact = published(store, "one")
    store.promote(artifact.manifest.version)
    (artifact.folder / "weights.bin").write_text("oNe")
    with pytest.raises(ArtifactError, match=r"weights\.bin: missing or changed since training; delete"):
        store.current()
    (artifact.folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"):
        store.current()


def test_a_version_that_is_not_there_cannot_be_promoted(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    with pytest.raises(ArtifactError, match="no such router artifact"):
        store.promote("nope")
