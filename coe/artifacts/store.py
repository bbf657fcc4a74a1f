"""Versioned folders with a manifest; publishing and promoting are one atomic rename each.

ROOT/KIND/VERSION/manifest.json + the files it lists      never changed once published
ROOT/KIND/current                                         the version in use, one line
ROOT/KIND/history.jsonl                                   what was put into use when, by whom and why

Which published versions nobody will ask for again, so that rounds of learning do not fill the disk. Pure.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from coe.artifacts.atomic_files import replace_file, sealed, sync
from coe.artifacts.manifest import (
    MANIFEST,
    Artifact,
    Manifest,
    check_version,
    is_version,
    read,
    read_manifest,
    version_of,
)
from coe.errors import ArtifactError

KEPT_OUTDATED = 10
"""The newest versions, whether they were ever in use or not."""
SHORT_CIRCUIT = 86_400.0
"""Seconds for which a version is kept in any case: it may be about to be promoted."""


def outdated(published: Mapping[str, float], wanted: Collection[str | None], *, now: float) -> tuple[str, ...]:
    """Of the `published` versions, by the Unix seconds at which that was, those to remove: not `wanted`, not among the
    newest and not of today."""
    newest = sorted(published, key=lambda version: published[version], reverse=True)[:KEPT_OUTDATED]
    kept = {*newest, *wanted}
    return tuple(version for version, at in published.items() if version not in kept and at < now - SHORT_CIRCUIT)


POINTER = "current"
HISTORY = "history.jsonl"
KEPT = 1000
"""Lines of history that are kept, the newest."""
RECALLED = 20
"""Latest moves whose versions are kept, to go back to."""
DRAFT = ".draft-"
STALE = 86_400.0
"""Seconds after which a draft is the remains of a process that was killed."""

KINDS = ("router", "overlays", "assignment", "gate")
"""What a gateway is served with, in the order in which it is read."""

By = Literal["train", "plan", "retrain", "hand", "rollback"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of the pointer, at `time` (Unix seconds): from `was` to `version`, None where none is in use."""

    time: float
    version: str | None
    was: str | None
    by: By
    why: str


@dataclass(frozen=True, slots=True)
class Shared:
    """What is in use everywhere, and the lines of the history that led there."""

    version: str | None
    history: bytes = field(repr=False)


class Share(Protocol):
    """Where machines tell each other what is in use. Every failure is an ArtifactError."""

    def put(self, kind: str, version: str | None, folder: Path, history: bytes) -> None: ...

    def stated(self, kind: str) -> Shared | None: ...

    def fetch(self, kind: str, version: str, into: Path) -> None:
        """Write the files of the version, which are verified before the first one is written."""


class ArtifactStore:
    """The artifacts of one kind under a root folder.

    With a `share`, what is put into use here is so everywhere: there first, so that a failure changes nothing.
    """

    def __init__(self, root: Path, kind: str, share: Share | None = None) -> None:
        self._kind = kind
        self._folder = root / kind
        self._share = share

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder to write files into; gone at the end unless published."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f"{DRAFT}*"):
            if left.stat().st_mtime < time.time() - STALE:
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self._folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, draft: Path, *, categories: Sequence[str], data: str, metrics: Mapping[str, Any]) -> Artifact:
        """Seal a draft with its manifest, on disk, and move it to its version. Same files and data, same version.
        Versions that nobody will ask for again make room."""
        files = {path.name: sealed(path) for path in sorted(draft.iterdir())}
        version = version_of(files, data=data, categories=categories)
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        manifest = Manifest(self._kind, version, created, tuple(categories), data, dict(metrics), files)
        (draft / MANIFEST).write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
        sealed(draft / MANIFEST)
        artifact = Artifact(self._placed(draft, version), manifest)
        self._make_room(exclude=version)
        return artifact

    def _make_room(self, *, exclude: str) -> None:
        with self._locked():
            moves = self.history()[-RECALLED:]
            wanted = {exclude, self.in_use(), *(one for move in moves for one in (move.version, move.was))}
            published = {one: (self._folder / one / MANIFEST).stat().st_mtime for one in self.versions()}
            for version in outdated(published, wanted, now=time.time()):
                gone = self._folder / f"{DRAFT}{version}"  # taken away in one step, and by the next draft if not now
                (self._folder / version).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _folder_of(self, version: str) -> Path:
        """Raises ArtifactError for a name that is no version, so that none leads out of the folder."""
        return self._folder / check_version(version)

    def _placed(self, draft: Path, version: str) -> Path:
        folder = self._folder_of(version)
        if not folder.exists():
            draft.chmod(0o755)
            draft.rename(folder)
            sync(self._folder)
        return folder

    def promote(self, version: str, *, by: By = "hand", why: str = "") -> None:
        """Make a published version the one in use; note by whom and why. Raises ArtifactError when it is not there or
        damaged, with nothing changed."""
        self.published(version)
        self._move(version, by, why)

    def forget(self, *, by: By = "hand", why: str = "") -> None:
        """Have no version in use; what was published stays."""
        self._move(None, by, why)

    def in_use(self) -> str | None:
        """The version in use, unread; None where none is."""
        try:
            return (self._folder / POINTER).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None

    def history(self) -> tuple[Promotion, ...]:
        """The moves of the pointer, oldest first. Raises ArtifactError where a line of it is damaged."""
        path = self._folder / HISTORY
        try:
            return _moves(path.read_bytes())
        except FileNotFoundError:
            return ()
        except ValueError as error:
            raise ArtifactError(f"{path}: a line is no promotion ({error}); delete the file to begin anew") from None

    def before(self) -> Promotion | None:
        """The move that brought the version in use, so that its `was` is what to go back to; None where none is noted.

        Going back does not count as such a move, or going back twice would go forth again.
        """
        return self._latest(lambda move: move.by != "rollback")

    def latest(self) -> Promotion | None:
        """The latest move to what is in use, going back included; None where none is noted."""
        return self._latest(lambda move: True)

    def _latest(self, counts: Callable[[Promotion], bool]) -> Promotion | None:
        """Moves that were noted and then not made, since the process was killed, are to something else."""
        version = self.in_use()
        moves = [move for move in self.history() if move.version == version and counts(move)]
        return moves[-1] if moves else None

    def fetch_shared(self) -> None:
        """Have what is in use elsewhere in the folder too, verified. Raises ArtifactError."""
        stated = None if self._share is None else self._share.stated(self._kind)
        if stated is not None and stated.version is not None:
            self._fetch(stated.version)

    def take_shared(self) -> None:
        """Move the pointer to where it is elsewhere, if that is in the folder. Raises ArtifactError."""
        if self._share is None:
            return
        with self._locked():
            stated = self._share.stated(self._kind)
            if stated is None or stated.version == self.in_use():
                return
            if stated.version is None or self._has(stated.version):
                self._point(stated.version, _checked_history(stated.history, self._kind))

    def _fetch(self, version: str) -> None:
        if self._share is None or self._has(version):
            return
        with self.draft() as draft:
            self._share.fetch(self._kind, version, draft)
            read(draft)
            for path in draft.iterdir():
                sync(path)
            with self._locked():
                self._placed(draft, version)

    def _has(self, version: str) -> bool:
        return (self._folder_of(version) / MANIFEST).is_file()

    def _move(self, version: str | None, by: By, why: str) -> None:
        """One move at a time."""
        with self._locked():
            known, was = self.history(), self.in_use()
            if was != version:
                known = (*known, Promotion(datetime.now(UTC).timestamp(), version, was, by, why))[-KEPT:]
            history = b"".join(orjson.dumps(asdict(move)) + b"\n" for move in known)
            if self._share is not None:
                self._share.put(
                    self._kind, version, self._folder if version is None else self._folder_of(version), history
                )
            self._point(version, history)

    def _point(self, version: str | None, history: bytes) -> None:
        """Noted before it is made: a process killed in between leaves what was in use, and a line that nothing follows
        from; the other way round one could not go back."""
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
        """The version in use, every file checked against its digest; None before the first promotion."""
        version = self.in_use()
        return None if version is None else read(self._folder_of(version))

    def folder(self, version: str) -> Path:
        """The folder of a version, unread."""
        return self._folder / version

    def versions(self) -> tuple[str, ...]:
        """All that are published, as their names sort."""
        found = (path.parent.name for path in self._folder.glob(f"[!.]*/{MANIFEST}"))
        return tuple(sorted(name for name in found if is_version(name)))

    def manifest(self, version: str) -> Manifest:
        """Of one of `versions`, nothing else of it read. Raises ArtifactError."""
        return read_manifest(self._folder_of(version))

    def newest(self) -> str:
        """The version published last. Raises ArtifactError where there is none."""
        found = [self.manifest(version) for version in self.versions()]
        if not found:
            raise ArtifactError(f"{self._folder}: no {self._kind} artifact is published yet")
        return max(found, key=lambda manifest: manifest.created).version

    def published(self, version: str) -> Artifact:
        """A published version, verified. Raises ArtifactError, which names the versions that there are."""
        if is_version(version):
            self._fetch(version)
        if not is_version(version) or not self._has(version):
            known = ", ".join(self.versions()) or "none"
            raise ArtifactError(f"{self._folder / version[:64]}: no such {self._kind} artifact; there are {known}")
        return read(self._folder_of(version))


def _moves(history: bytes) -> tuple[Promotion, ...]:
    """Raises ValueError where a line is no promotion."""
    try:
        return tuple(Promotion(**orjson.loads(line)) for line in history.splitlines())
    except TypeError as error:
        raise ValueError(str(error)) from None


def _checked_history(history: bytes, kind: str) -> bytes:
    """The same history, from elsewhere. Raises ArtifactError unless every line is a promotion between versions."""
    try:
        moves = _moves(history)
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
