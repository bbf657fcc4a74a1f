"""Keeps the last good state of a running gateway on disk: a worker that starts again after a crash begins with it.

The files in use may be invalid by then. The worker serves the last good state, like the other workers, and then reloads
the files in use: this applies a change or a repair, or reports why it failed.

COE_HOME/last-good/RUN/state.json       written atomically by every worker after each load; the last one counts
COE_HOME/last-good/RUN/KIND/VERSION/    a copy of each artifact in it, for a version that is damaged later

RUN is private to one gateway and deleted at its end, so that its next start reads the files in use. It is readable by
its owner only, because a declaration may contain secrets.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.artifacts.kinds import ROUTER
from coe.runtime.active_state import ActiveState
from coe.runtime.api_keys import ADMIN_KEY_NAME
from coe.runtime.kept_state import KeptState
from coe.settings import Endpoint, Settings
from gateway.observability.logs import describe_error

FOLDER, STATE = "last-good", "state.json"
LOCK = ".lock"
"""Held by the running gateway for its folder, and during a change of the folder above."""
WRITER_LOCK = ".writing"
DRAFT_PREFIX = ".draft-"

_log = logging.getLogger("gateway")


@contextmanager
def last_good_folder(home: Path) -> Iterator[Path | None]:
    """A private folder for the last good state of one gateway, deleted at the end; None if it cannot be made. Deletes
    the folders of gateways that were killed."""
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
    """Returns whether the gateway of a folder runs."""
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
    """Loads a kept state; like `load_active_state`."""

    def __call__(self, settings: Settings, previous: None, *, kept: KeptState) -> ActiveState: ...


class LastGood:
    """The last good state in a folder of `last_good_folder`, which all workers of the gateway share."""

    def __init__(self, folder: Path, settings: Settings, *, read: KeptReader) -> None:
        self._folder = folder
        self._settings = settings
        self._read = read

    def load(self) -> ActiveState | None:
        """Load the kept state; None if nothing is kept yet, or if it is damaged."""
        try:
            fields = orjson.loads((self._folder / STATE).read_bytes())
            kept = KeptState(
                fields["declaration"],
                fields["admin_digest"],
                {name: tuple(Endpoint(**one) for one in found) for name, found in fields["endpoints"].items()},
                fields["versions"],
                artifacts=self._settings.artifacts,
                copies=self._folder,
            )
            return self._read(self._settings, None, kept=kept)
        except FileNotFoundError:
            return None
        except Exception as error:  # the files in use may be valid, so the start goes on with them
            text = "the last good state cannot be loaded, so the worker starts with the files in use: %s"
            _log.error(text, describe_error(error))
            return None

    def keep(self, in_use: ActiveState, versions: Mapping[str, str | None]) -> None:
        """Keep a state that serves with these `versions`, by kind of artifact. Raises OSError or ConfigError."""
        if not in_use.declaration:
            return
        endpoints = self._settings.served() if in_use.kept is None else in_use.kept.endpoints
        content = orjson.dumps(
            {
                "declaration": in_use.declaration,
                "admin_digest": self._admin_digest(in_use),
                "endpoints": {name: [asdict(one) for one in found] for name, found in endpoints.items()},
                "versions": dict(versions),
            }
        )
        with _locked(self._folder / WRITER_LOCK):
            if self._content() == content:  # another worker loaded the same
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
        """Copy a version, unless it is copied already, or deleted because nothing reads it (a gate that is unused)."""
        target = self._folder / kind / version
        if target.exists() or not source.is_dir():
            return
        target.parent.mkdir(exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=DRAFT_PREFIX))
        try:
            shutil.copytree(source, draft, dirs_exist_ok=True)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _delete_unused(self, versions: Mapping[str, str | None]) -> None:
        """Delete the copies that no state needs any more, and drafts of workers that were killed."""
        for folder in (*self._folder.glob("[!.]*/*/"), *self._folder.glob(f"{DRAFT_PREFIX}*/")):
            if folder.name != versions.get(folder.parent.name):
                shutil.rmtree(folder, ignore_errors=True)
