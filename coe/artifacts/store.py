"""Versioned folders of one kind of artifact; publishing and promoting are one atomic rename each.

ROOT/KIND/VERSION/manifest.json + the files it lists      never changed once published; replaced if damaged
ROOT/KIND/current                                         the version in use, one line
ROOT/KIND/history.jsonl                                   promotions: when, by whom and why

Training writes a draft and publishes it; a promotion makes it the version in use, which gateways watch. With shared
artifacts, promotions also reach the other machines. Publishing deletes outdated versions.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from coe.artifacts.manifest import (
    MANIFEST,
    Artifact,
    Manifest,
    check_version,
    is_version,
    read_artifact,
    read_manifest,
    replace_file,
    sync,
    sync_and_hash,
    version_of,
)
from coe.errors import ArtifactError

if TYPE_CHECKING:
    from coe.artifacts.redis import RedisArtifacts

POINTER = "current"
HISTORY = "history.jsonl"
MAX_ROLLBACK_MOVES = 20
"""Latest moves whose versions are kept for rollbacks."""
DRAFT_PREFIX = ".draft-"
STALE_DRAFT_SECONDS = 86_400.0
"""Age above which a draft was left behind by a killed process."""

MIN_KEPT_VERSIONS = 10
"""Newest versions that are kept, whether they were ever in use or not."""
MIN_AGE_SECONDS = 86_400.0
"""Age below which a version is kept: it may be about to be promoted."""


MAX_HISTORY_LINES = 1000
"""Newest lines that are kept."""
PromotedBy = Literal["train", "plan", "retrain", "packaged", "hand", "rollback", "alarm"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of the pointer, at `time` (Unix seconds): from version `was` to `version`, None where none is in use."""

    time: float
    version: str | None
    was: str | None
    by: PromotedBy
    why: str


def parse_history(history: bytes) -> tuple[Promotion, ...]:
    """The moves of a history file, oldest first. Raises ValueError for a line that is not a promotion."""
    try:
        return tuple(Promotion(**orjson.loads(line)) for line in history.splitlines())
    except TypeError as error:
        raise ValueError(str(error)) from None


def checked_history(history: bytes, kind: str) -> bytes:
    """Return the history unchanged if every line is a promotion between versions. Raises ArtifactError otherwise."""
    try:
        moves = parse_history(history)
        for move in moves:
            texts = (move.by, move.why, move.version or "", move.was or "")
            if not isinstance(move.time, float | int) or not all(isinstance(text, str) for text in texts):
                raise ValueError("a field has the wrong type")
            for version in filter(None, (move.version, move.was)):
                check_version(version)
    except (ValueError, ArtifactError) as error:
        raise ArtifactError(
            f"{kind}: the shared history is damaged ({error}); promote a version to replace it"
        ) from None
    return history


def serialized_history(moves: Sequence[Promotion]) -> bytes:
    """Serialize the newest MAX_HISTORY_LINES moves, one line of JSON each."""
    return b"".join(orjson.dumps(asdict(move)) + b"\n" for move in moves[-MAX_HISTORY_LINES:])


class ArtifactStore:
    """The artifacts of one kind under a root folder.

    With a `share`, a promotion takes effect on all machines. The share is written before the local pointer, so that a
    failure of the share changes nothing.
    """

    def __init__(self, root: Path, kind: str, share: RedisArtifacts | None = None) -> None:
        self._kind = kind
        self._folder = root / kind
        self._share = share

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to write files into; deleted at the end unless published."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.glob(f"{DRAFT_PREFIX}*"):
            if stale.stat().st_mtime < time.time() - STALE_DRAFT_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, *, categories: Sequence[str], data: str, metrics: Mapping[str, Any]) -> Artifact:
        """Adds a manifest to a draft and moves it to its version, on disk on return. Equal files and data give the same
        version, and replace a damaged one. Deletes outdated versions."""
        files = {path.name: sync_and_hash(path) for path in sorted(draft.iterdir())}
        version = version_of(files, data=data, categories=categories)
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        manifest = Manifest(self._kind, version, created, tuple(categories), data, dict(metrics), files)
        (draft / MANIFEST).write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
        sync_and_hash(draft / MANIFEST)
        with self._locked():
            artifact = Artifact(self._install(draft, version), manifest)
        self._delete_outdated(exclude=version)
        return artifact

    def _delete_outdated(self, *, exclude: str) -> None:
        with self._locked():
            moves = self.history()[-MAX_ROLLBACK_MOVES:]
            needed = {exclude, self.in_use(), *(one for move in moves for one in (move.version, move.was))}
            published = {one: (self._folder / one / MANIFEST).stat().st_mtime for one in self.versions()}
            for version in outdated_versions(published, needed, now=time.time()):
                shutil.rmtree(self._set_aside(version), ignore_errors=True)

    def _set_aside(self, version: str) -> Path:
        """Renames the folder of a version, to be deleted. If this process dies first, the next draft deletes it."""
        outdated = self._folder / f"{DRAFT_PREFIX}{version}"
        shutil.rmtree(outdated, ignore_errors=True)
        return (self._folder / version).rename(outdated)

    def _folder_of(self, version: str) -> Path:
        """Raises ArtifactError for a name that is not a version, so that no path leads out of the folder."""
        return self._folder / check_version(version)

    def _install(self, draft: Path, version: str) -> Path:
        """Moves a draft to its version, unless an intact copy is there. The lock is held."""
        folder = self._folder_of(version)
        if self._is_intact(version):
            return folder
        draft.chmod(0o755)
        outdated = self._set_aside(version) if folder.exists() else None
        draft.rename(folder)
        sync(self._folder)
        if outdated is not None:
            shutil.rmtree(outdated, ignore_errors=True)
        return folder

    def _is_intact(self, version: str) -> bool:
        try:
            read_artifact(self._folder_of(version))
        except ArtifactError:
            return False
        return True

    def promote(self, version: str, *, by: PromotedBy = "hand", why: str = "") -> None:
        """Puts a published version into use, and records by whom and why. Raises ArtifactError if it is missing or
        damaged, with nothing changed."""
        self.published(version)
        self._set_in_use(version, by, why)

    def adopt(self, folder: Path, *, why: str) -> None:
        """Publishes a verified copy of a packaged version. Puts it into use, on this machine only, if no version or an
        earlier packaged version is in use. Raises ArtifactError if it is damaged."""
        version = read_manifest(folder).version
        if not self._is_intact(version):
            read_artifact(folder)  # its error names the packaged file, not the copy
            self._add(version, lambda draft: shutil.copytree(folder, draft, dirs_exist_ok=True))
        with self._locked():
            was = self.in_use()
            if was != version and self.may_adopt_packaged():
                move = Promotion(datetime.now(UTC).timestamp(), version, was, "packaged", why)
                self._write_pointer(version, serialized_history((*self.history(), move)))

    def may_adopt_packaged(self) -> bool:
        """Returns whether no version is in use, or one that `adopt` put there; False if the history is damaged."""
        if self.in_use() is None:
            return True
        try:
            move = self.last_move()
        except ArtifactError:
            return False
        return move is not None and move.by == "packaged"

    def clear(self, *, by: PromotedBy = "hand", why: str = "") -> None:
        """Takes the version in use out of use; published versions stay."""
        self._set_in_use(None, by, why)

    def in_use(self) -> str | None:
        """The version that the pointer names, without verifying it; None if there is none. Raises ArtifactError if the
        pointer cannot be read."""
        path = self._folder / POINTER
        try:
            return path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def history(self) -> tuple[Promotion, ...]:
        """The moves of the pointer, oldest first. Raises ArtifactError for a damaged line."""
        path = self._folder / HISTORY
        try:
            return parse_history(path.read_bytes())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            raise ArtifactError(f"{path}: a line is not a promotion ({error}); delete the file to start over") from None

    def last_promotion(self) -> Promotion | None:
        """The move that put the current version into use, so that its `was` is what a rollback restores; None if none
        is recorded.

        Rollbacks do not count: otherwise a second rollback would undo the first.
        """
        return self._last_move_where(lambda move: move.by != "rollback")

    def last_move(self) -> Promotion | None:
        """The latest move to the current version, rollbacks included; None if none is recorded."""
        return self._last_move_where(lambda move: True)

    def _last_move_where(self, counts: Callable[[Promotion], bool]) -> Promotion | None:
        """The last matching move to the version in use. A move that was recorded but not made, because the process was
        killed, leads to another version."""
        version = self.in_use()
        moves = [move for move in self.history() if move.version == version and counts(move)]
        return moves[-1] if moves else None

    def fetch_shared(self) -> None:
        """Downloads the version that the share has in use into the folder, and verifies it. Raises ArtifactError."""
        state = None if self._share is None else self._share.state(self._kind)
        if state is not None and state.version is not None:
            self._fetch(state.version)

    def apply_shared(self) -> None:
        """Sets the pointer to the version that the share has in use, if the folder holds it. Raises ArtifactError."""
        if self._share is None:
            return
        with self._locked():
            state = self._share.state(self._kind)
            if state is None or state.version == self.in_use():
                return
            if state.version is None or self._has(state.version):
                self._write_pointer(state.version, checked_history(state.history, self._kind))

    def _fetch(self, version: str) -> None:
        if self._share is not None and not self._has(version):
            self._add(version, partial(self._share.fetch, self._kind, version))

    def _add(self, version: str, write: Callable[[Path], object]) -> None:
        """Adds a version that is published elsewhere; `write` writes its files into a folder."""
        with self.draft() as draft:
            write(draft)
            read_artifact(draft)
            for path in draft.iterdir():
                sync(path)
            with self._locked():
                self._install(draft, version)

    def _has(self, version: str) -> bool:
        return (self._folder_of(version) / MANIFEST).is_file()

    def _set_in_use(self, version: str | None, by: PromotedBy, why: str) -> None:
        """Moves the pointer; one process at a time."""
        with self._locked():
            known, was = self.history(), self._last_known()
            if was != version:
                known = (*known, Promotion(datetime.now(UTC).timestamp(), version, was, by, why))
            history = serialized_history(known)
            if self._share is not None:
                self._share.put(
                    self._kind, version, self._folder if version is None else self._folder_of(version), history
                )
            self._write_pointer(version, history)

    def _write_pointer(self, version: str | None, history: bytes) -> None:
        """Writes the history first. A process killed in between leaves the old version in use and one line without
        effect; in the other order a rollback would be impossible."""
        replace_file(self._folder / HISTORY, history)
        if version is None:
            (self._folder / POINTER).unlink(missing_ok=True)
            sync(self._folder)
        else:
            replace_file(self._folder / POINTER, version.encode("ascii") + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def current(self) -> Artifact | None:
        """The version in use, every file verified; None before the first promotion. Raises ArtifactError."""
        version = self.in_use()
        if version is None:
            return None
        if not is_version(version):
            command = " ".join(filter(None, ("coe promote", self._kind, self._last_known())))
            raise ArtifactError(
                f"{self._folder / POINTER}: {version[:64]!r} is not a version (12 hexadecimal digits); put one into "
                f"use with `{command}`"
            )
        return read_artifact(self._folder_of(version))

    def _last_known(self) -> str | None:
        """The version in use. If the pointer is damaged, for example by a power failure, the history's last version."""
        version = self.in_use()
        if version is None or is_version(version):
            return version
        history = self.history()
        return history[-1].version if history else None

    def folder(self, version: str) -> Path:
        """The folder of a version, without reading it."""
        return self._folder / version

    def versions(self) -> tuple[str, ...]:
        """All published versions, sorted by name."""
        found = (path.parent.name for path in self._folder.glob(f"[!.]*/{MANIFEST}"))
        return tuple(sorted(name for name in found if is_version(name)))

    def manifest(self, version: str) -> Manifest:
        """The manifest of one of `versions`; the other files are not read. Raises ArtifactError."""
        return read_manifest(self._folder_of(version))

    def newest(self, *, left_out: Callable[[ArtifactError], object] = lambda _: None) -> str:
        """The version published last. Versions whose manifest cannot be read are left out; `left_out` gets their
        errors. Raises ArtifactError if there is no other."""
        found, errors = list[Manifest](), list[ArtifactError]()
        for version in self.versions():
            try:
                found.append(self.manifest(version))
            except ArtifactError as error:
                errors.append(error)
        if not found:
            raise errors[0] if errors else ArtifactError(f"{self._folder}: no {self._kind} artifact is published yet")
        for problem in errors:
            left_out(problem)
        return max(found, key=lambda manifest: manifest.created).version

    def published(self, version: str) -> Artifact:
        """A published version, verified. Raises ArtifactError that names the existing versions."""
        if is_version(version):
            self._fetch(version)
        if not is_version(version) or not self._has(version):
            known = ", ".join(self.versions()) or "none"
            raise ArtifactError(f"{self._folder / version[:64]}: no such {self._kind} artifact; there are {known}")
        return read_artifact(self._folder_of(version))


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path}: cannot be read ({error.strerror}); check the folder's disk and permissions")


def outdated_versions(published: Mapping[str, float], needed: Collection[str | None], *, now: float) -> tuple[str, ...]:
    """The `published` versions to delete, by their time of publication in Unix seconds: not `needed`, not among the
    newest, and older than MIN_AGE_SECONDS."""
    newest = sorted(published, key=lambda version: published[version], reverse=True)[:MIN_KEPT_VERSIONS]
    keep = {*newest, *needed}
    return tuple(version for version, at in published.items() if version not in keep and at < now - MIN_AGE_SECONDS)


def mirror(stores: Sequence[ArtifactStore]) -> None:
    """Downloads the versions that the share has in use; fetches and verifies all of them before a pointer moves.

    Raises ArtifactError, with the versions in use unchanged, if Redis is down or a version is damaged.
    """
    for store in stores:
        store.fetch_shared()
    for store in stores:
        store.apply_shared()
