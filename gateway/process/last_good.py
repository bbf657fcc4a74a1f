"""Keeps the last good state of a running gateway on disk, for workers that restart after a crash.

The files in use may be invalid at that time. The worker first serves the last good state, like the other workers. Then
it reloads the files in use, which applies a change or a repair, or reports the error.

COE_HOME/last-good/RUN/state.json       replaced atomically by a worker after it loads a new state
COE_HOME/last-good/RUN/KIND/VERSION/    a copy of each artifact in it, used if the original is damaged later

RUN is private to one gateway and deleted at its end, so that its next start reads the files in use. If a gateway is
killed, the next start of any gateway with this COE_HOME deletes its RUN. Only its owner can read RUN, because a
declaration may contain secrets.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.kinds import GATE, ROUTER
from coe.errors import ConfigError
from coe.runtime.active_state import ActiveState
from coe.runtime.api_keys import ADMIN_KEY_NAME
from coe.runtime.kept_state import KeptState
from coe.settings import Endpoint, Settings
from gateway.observability.logs import describe_error

FOLDER, STATE = "last-good", "state.json"
LOCK = ".lock"
"""File that the running gateway locks in its folder, and in the folder above while it changes that one."""
WRITER_LOCK = ".writing"
DRAFT_PREFIX = ".draft-"

_log = logging.getLogger("gateway")


@contextmanager
def last_good_folder(home: Path) -> Iterator[Path | None]:
    """Yield a private folder for the last good state of one gateway, or None if it cannot be created.

    The folder is deleted at the end of the block. The folders of killed gateways are deleted at its start.
    """
    try:
        folder, lock = _new_folder(home / FOLDER)
    except OSError as error:
        _log.warning("the state in service is not kept for workers that crash: %s", error)
        yield None
        return
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(root: Path) -> tuple[Path, Any]:
    """A new folder, and its open lock file. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / LOCK):
        for left in root.glob("[!.]*/"):
            if not _is_running(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root, prefix="run-"))
        lock = (folder / LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the gateway and its workers have ended
        return folder, lock


def _is_running(folder: Path) -> bool:
    """True if the gateway of a folder is running."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class KeptReader(Protocol):
    """Function that loads a kept state: `load_active_state` or one like it."""

    def __call__(self, settings: Settings, previous: None, *, kept: KeptState) -> ActiveState: ...


class LastGood:
    """The last good state in a folder of `last_good_folder`, which all workers of the gateway share.

    `restores`: this worker replaces one that has crashed, so it begins with the kept state.
    """

    def __init__(self, folder: Path, settings: Settings, *, read: KeptReader, restores: bool) -> None:
        self._folder = folder
        self._settings = settings
        self._read = read
        self._restores = restores
        self._lock: int | None = None
        """Descriptor of the lock file of a folder that this worker has recreated."""

    def load(self) -> ActiveState | None:
        """Load the kept state. Return None at a first start, and if nothing is kept yet or it is damaged."""
        if not self._restores:
            return None
        try:
            if (content := self._content()) is None:
                return None
            fields = orjson.loads(content)
            kept = KeptState(
                fields["declaration"],
                fields["admin_digest"],
                {name: tuple(Endpoint(**one) for one in found) for name, found in fields["endpoints"].items()},
                fields["versions"],
                artifacts=self._settings.artifacts,
                copies=self._folder,
            )
            in_use = self._read(self._settings, None, kept=kept)
            if in_use.index is not None:
                kept.artifact(GATE)  # verified here: later the worker cannot fall back to the files in use
            return in_use
        except Exception as error:  # the files in use may be valid, so the worker starts with them
            text = "the last good state cannot be loaded, so the worker starts with the files in use: %s"
            _log.error(text, describe_error(error))
            return None

    def keep(self, in_use: ActiveState, versions: Mapping[str, str | None]) -> None:
        """Keep a state that was loaded from the files in use; `versions` has the version of each kind of artifact.

        Raises OSError or ConfigError if it cannot be kept. Then no state is kept, because an older one may accept keys
        that were revoked since.
        """
        if not in_use.declaration:
            return
        if not self._folder.is_dir():
            self._recreate()
        with _locked(self._folder / WRITER_LOCK):
            try:
                self._replace(in_use, versions)
            except (OSError, ConfigError):
                (self._folder / STATE).unlink(missing_ok=True)
                raise

    def _recreate(self) -> None:
        """Recreate the folder after the state folder was deleted or replaced. Raises OSError.

        This worker locks it until it ends, so that no other gateway that starts deletes it.
        """
        root = self._folder.parent
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / LOCK):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            if self._lock is not None:
                os.close(self._lock)
            self._lock = lock
            with suppress(BlockingIOError):  # the folder has come back with the lock of the whole gateway
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: each worker that recreates it holds it

    def _replace(self, in_use: ActiveState, versions: Mapping[str, str | None]) -> None:
        """Replace the kept state. Raises OSError or ConfigError."""
        content = orjson.dumps(
            {
                "declaration": in_use.declaration,
                "admin_digest": self._admin_digest(in_use),
                "endpoints": {name: [asdict(one) for one in found] for name, found in self._settings.served().items()},
                "versions": dict(versions),
            }
        )
        if self._content() == content:  # another worker has kept the same state
            return
        for kind, version in versions.items():
            if version is not None:
                self._copy(kind, version, self._source(in_use, kind, version))
        replace_file(self._folder / STATE, content, mode=0o600)
        self._delete_unused(versions)

    def _admin_digest(self, in_use: ActiveState) -> str | None:
        if self._settings.admin_key_file is None:
            return None
        return next(key.sha256 for key in in_use.registry.access.keys if key.name == ADMIN_KEY_NAME)

    def _content(self) -> bytes | None:
        try:
            return (self._folder / STATE).read_bytes()
        except FileNotFoundError:
            return None

    def _source(self, in_use: ActiveState, kind: str, version: str) -> Path:
        return in_use.folder if kind == ROUTER else self._settings.artifacts / kind / version

    def _copy(self, kind: str, version: str, source: Path) -> None:
        """Copy a version, unless it is copied already or its folder is deleted, as that of an unused gate may be."""
        target = self._folder / kind / version
        if target.exists() or not source.is_dir():
            return
        target.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=DRAFT_PREFIX))
        try:
            for file in source.iterdir():  # without file modes: a read-only folder can be neither moved nor deleted
                shutil.copyfile(file, draft / file.name)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _delete_unused(self, versions: Mapping[str, str | None]) -> None:
        """Delete the copies that the kept state does not need, and drafts of workers that were killed."""
        for folder in (*self._folder.glob("[!.]*/*/"), *self._folder.glob(f"{DRAFT_PREFIX}*/")):
            if folder.name != versions.get(folder.parent.name):
                shutil.rmtree(folder, ignore_errors=True)
