"""Artifacts: sealed, verified, promoted in one step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coe.artifacts.manifest import MANIFEST, Artifact
from coe.artifacts.store import MIN_KEPT_VERSIONS, ArtifactStore
from coe.errors import ArtifactError
from tests.permissions import without_access


def published(store: ArtifactStore, content: str) -> Artifact:
    with store.draft() as draft:
        (draft / "weights.bin").write_text(content)
        return store.publish(draft, categories=["a", "b"], data="d1", metrics={"accuracy": 0.5})


def test_the_promoted_version_is_current_and_keeps_its_manifest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    first, second = published(store, "one"), published(store, "two")
    store.promote(second.manifest.version)
    current = store.current()
    assert current == second
    assert current.manifest.categories == ("a", "b")
    store.promote(first.manifest.version)
    assert store.current() == first


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    artifact = published(store, "one")
    store.promote(artifact.manifest.version)
    (artifact.folder / "weights.bin").write_text("oNe")
    with pytest.raises(ArtifactError, match=r"weights\.bin: missing or changed.*make it again with `coe train`"):
        store.current()
    (artifact.folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read.*`coe rollback router`"):
        store.current()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_pointer_that_a_power_failure_cut_off_is_named_with_the_version_to_promote(
    share: float, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path, "router")
    old, new = (published(store, text).manifest.version for text in ("one", "two"))
    store.promote(old)
    store.promote(new)
    pointer = tmp_path / "router" / "current"
    pointer.write_bytes(pointer.read_bytes()[: int(12 * share)])
    with pytest.raises(ArtifactError, match=rf"{pointer}: '.*' is not a version.*`coe promote router {new}`"):
        store.current()
    store.promote(new)
    assert store.in_use() == new
    assert [(move.was, move.version) for move in store.history()] == [(None, old), (old, new)]
    pointer.write_bytes(b"")
    (tmp_path / "router" / "history.jsonl").unlink()
    with pytest.raises(ArtifactError, match="`coe promote router`"):
        store.current()


def test_a_folder_that_may_not_be_searched_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    store = ArtifactStore(folder, "router")
    store.promote(published(store, "one").manifest.version)
    with without_access(folder):
        for read in (store.current, store.in_use, store.history):
            with pytest.raises(ArtifactError, match=r"home/router/.*: cannot be read \(Permission denied\); check"):
                read()


@pytest.mark.parametrize("name", ["weights.bin", MANIFEST])
@pytest.mark.parametrize("content", ["oNe", None])
def test_making_a_damaged_version_again_repairs_it(name: str, content: str | None, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    artifact = published(store, "one")
    store.promote(artifact.manifest.version, by="train")
    (artifact.folder / name).unlink()
    if content is not None:
        (artifact.folder / name).write_text(content)
    again = published(store, "one").manifest.version
    store.promote(again, by="train")
    current = store.current()
    assert current is not None
    assert current.manifest.version == artifact.manifest.version == again
    assert [path.name for path in (tmp_path / "router").iterdir() if path.is_dir()] == [again]


def test_a_damaged_version_is_not_promoted_and_nothing_moves(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    first, second = published(store, "one"), published(store, "two")
    store.promote(first.manifest.version)
    (second.folder / "weights.bin").write_text("tw")
    with pytest.raises(ArtifactError, match=r"weights\.bin: missing or changed"):
        store.promote(second.manifest.version)
    assert store.current() == first
    assert [move.version for move in store.history()] == [first.manifest.version]


def test_the_way_back_leads_over_what_was_in_use_and_not_forth_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    versions = [published(store, text).manifest.version for text in ("one", "two", "three")]
    for version in versions:
        store.promote(version, by="train")
    for expected in (versions[1], versions[0], None):
        move = store.last_promotion()
        assert move is not None
        assert move.was == expected
        if expected:
            store.promote(expected, by="rollback")
            latest = store.last_move()
            assert latest is not None
            assert (latest.version, latest.by) == (expected, "rollback")


DYING = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from coe.artifacts import store as artifacts

store, plain, seen = artifacts.ArtifactStore(pathlib.Path(sys.argv[2]), "router"), artifacts.replace_file, []

def dying(path, content):
    seen.append(path.name)
    if sys.argv[4] == "before" and path.name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(path, content)
    if path.name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

artifacts.replace_file = dying
store.promote(store.newest(), by="retrain")
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["history.jsonl", "current"])
def test_a_process_killed_between_two_steps_leaves_the_old_or_the_new_version_and_a_way_back(
    step: str, when: str, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path, "router")
    old = published(store, "one").manifest.version
    store.promote(old, by="train")
    new = published(store, "two").manifest.version
    command = [sys.executable, "-c", DYING, str(Path(__file__).parents[1]), str(tmp_path), step, when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    moved = (step, when) == ("current", "after")
    current, move = store.current(), store.last_promotion()
    assert current is not None
    assert move is not None
    assert current.manifest.version == (new if moved else old)
    assert move.was == (old if moved else None)
    store.promote(new, by="hand")
    assert store.in_use() == new
    assert [path.name for path in (tmp_path / "router").glob(".draft-*")] == []


def aged(store: ArtifactStore, folder: Path, content: str, *, days: float) -> str:
    version = published(store, content).manifest.version
    then = time.time() - 86_400 * days
    os.utime(folder / "router" / version / MANIFEST, (then, then))
    return version


def test_old_versions_make_room_but_those_in_use_and_the_way_back_stay(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    before, served = (aged(store, tmp_path, name, days=90) for name in ("before", "served"))
    store.promote(before)
    store.promote(served)
    never = [aged(store, tmp_path, f"candidate {number}", days=80 - number) for number in range(MIN_KEPT_VERSIONS + 3)]
    latest = published(store, "latest").manifest.version
    kept = {path.name for path in (tmp_path / "router").iterdir() if path.is_dir()}
    assert kept == {before, served, latest, *never[-MIN_KEPT_VERSIONS + 1 :]}
    store.promote(before, by="rollback")
    assert store.current() is not None


def test_a_packaged_version_comes_into_use_where_there_is_none_and_is_replaced_by_a_later_one(tmp_path: Path) -> None:
    store, first, second = ArtifactStore(tmp_path, "router"), packaged(tmp_path, "one"), packaged(tmp_path, "two")
    store.adopt(first.folder, why="shipped")
    store.adopt(first.folder, why="shipped")
    assert store.in_use() == first.manifest.version
    assert [(move.by, move.was) for move in store.history()] == [("packaged", None)]
    store.adopt(second.folder, why="shipped")
    assert store.in_use() == second.manifest.version


def test_a_packaged_version_never_replaces_one_that_was_trained_or_chosen(tmp_path: Path) -> None:
    store, first, second = ArtifactStore(tmp_path, "router"), packaged(tmp_path, "one"), packaged(tmp_path, "two")
    store.adopt(first.folder, why="shipped")
    trained = published(store, "trained").manifest.version
    store.promote(trained, by="train")
    store.adopt(second.folder, why="shipped")
    assert store.in_use() == trained
    store.promote(first.manifest.version, by="rollback")
    store.adopt(second.folder, why="shipped")
    assert store.in_use() == first.manifest.version
    (tmp_path / "router" / "history.jsonl").write_text("damaged\n")
    store.adopt(second.folder, why="shipped")
    assert store.in_use() == first.manifest.version


def packaged(folder: Path, content: str) -> Artifact:
    """A version as it lies in an installation."""
    return published(ArtifactStore(folder / "wheel", "router"), content)


def test_the_newest_version_is_found_beside_one_whose_manifest_cannot_be_read(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "router")
    good, damaged = (published(store, name).manifest.version for name in ("good", "damaged"))
    (tmp_path / "router" / damaged / MANIFEST).write_text("half")
    errors = list[ArtifactError]()
    assert store.newest(left_out=errors.append) == good
    (error,) = errors
    assert f"{damaged}/manifest.json: cannot be read" in str(error)
    assert "make it again with `coe train`" in str(error)
    (tmp_path / "router" / good / MANIFEST).write_text("half")
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"):
        store.newest()
