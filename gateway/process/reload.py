"""Applies changes of experts.yaml and of promoted artifacts while the gateway serves.

A new state is read, checked and built completely before it replaces the old one. On any error the old one stays, the
log gives the cause once, and `coe_reload_failed` and /health/ready show it. The files are then read again every
RETRY_SECONDS, since a damaged one may have been repaired. Running requests keep the state that they began with.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from coe.artifacts.active_state import ActiveState
from coe.artifacts.consequences import log_consequences
from coe.artifacts.kinds import ASSIGNMENT, GATE, ROUTER
from coe.artifacts.store import POINTER
from coe.errors import CoEError, ConfigError
from coe.registry import ExpertSpec, Registry
from coe.registry.hints import without_values
from coe.registry.runtimes import LOCAL_RUNTIMES
from coe.registry.yaml_source import read_text
from coe.settings import Settings
from coe.supervision import TaskFailed, ignore_failure, log_failure, supervised
from gateway.access.browsers import check_exposure
from gateway.access.issued_keys import check_issued
from gateway.services import Services
from gateway.snapshot import Snapshot, SnapshotBuilder

POLL_SECONDS = 0.5
"""Interval of checks of the files."""
SETTLE_SECONDS = 0.1
"""Time that the files must stay unchanged before they are read, since one may be half written."""

RETRY_SECONDS = 10.0
"""Time after a failure until the files are read again although none has changed."""

FileStates = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and modification time of every watched file; None for a missing one."""
Reader = Callable[[Settings, ActiveState | None], ActiveState]
"""Reads the active state, given the previous one (None at the start)."""

_log = logging.getLogger("gateway")


class Reload:
    """Watches the files and applies changes while the block of `watching` runs."""

    def __init__(
        self,
        services: Services,
        *,
        settings: Settings,
        in_use: ActiveState,
        builder: SnapshotBuilder,
        read: Reader,
    ) -> None:
        self._services = services
        self._settings = settings
        self._in_use = in_use
        self._builder = builder
        self._read = read
        self._started_with = in_use.registry
        self._files = watched_files(settings)
        self._requested = asyncio.Event()
        self._warming: asyncio.Task[None] | None = None
        self._config_digest: bytes | None = None

    def serves(self, config: bytes) -> bool:
        """True if the state in use was read from this content of experts.yaml."""
        return hashlib.sha256(config).digest() == self._config_digest

    def request(self) -> None:
        """Reload now, even if no file changed."""
        self._requested.set()

    @asynccontextmanager
    async def watching(self, *, since: FileStates, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[None]:
        """Watches the files in a task until the block ends. `since` are their states before the first read."""
        task = supervised(partial(self._run, since), "reload", task_failed=task_failed)
        try:
            yield
        finally:
            tasks = [one for one in (task, self._warming) if one is not None]
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, since: FileStates) -> None:
        self._config_digest = await asyncio.to_thread(_digest, self._settings.config)
        states, retry_at = since, math.inf
        while True:
            requested = self._requested.is_set()
            self._requested.clear()
            if requested or file_states(self._files) != states or time.monotonic() >= retry_at:
                states = await self._settled_states()
                await self._apply()
                retry_at = math.inf if self._services.reload_error is None else time.monotonic() + RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._requested.wait()
            await self._builder.close_retired()

    async def _settled_states(self) -> FileStates:
        states = file_states(self._files)
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            previous, states = states, file_states(self._files)
            if states == previous:
                return states

    async def _apply(self) -> None:
        """Read the files and serve their state."""
        try:
            config_digest, in_use = await asyncio.to_thread(self._read_files)
            self.check(in_use.registry)
            snapshot = self._builder.build(in_use)
        except CoEError as error:
            await self._report_failure(str(error))
        except Exception as error:  # a bug while loading the new state must not end the reload task
            await self._report_failure(repr(error))
        else:
            if in_use.consequences != self._in_use.consequences:
                log_consequences(in_use.consequences)
            is_indexed_anew = in_use.index is not None and in_use.index is not self._in_use.index
            self._in_use = in_use
            self._services.replace(snapshot)
            if is_indexed_anew:
                self._warm(snapshot)
            self._services.reload_error, self._config_digest = None, config_digest
            router, plan = snapshot.composition.router.version, snapshot.plan or "as declared"
            _log.warning("reloaded: config %s, router %s, plan %s", snapshot.registry.digest, router, plan)

    def _read_files(self) -> tuple[bytes | None, ActiveState]:
        """The digest of experts.yaml, and the state. Raises ConfigError for a pipe or device in its place, which might
        have no end."""
        config = self._settings.config
        if config.exists() and not config.is_file():
            raise ConfigError(f"{config}: neither a file nor a link to one; write the declaration to a file")
        return _digest(config), self._read(self._settings, self._in_use)

    def _warm(self, snapshot: Snapshot) -> None:
        """Search a new document index once in the background, since a slow store must not delay the next reload."""
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.create_task(snapshot.composition.warm(), name="coe-warm")
        self._warming.add_done_callback(log_failure)

    def check(self, registry: Registry) -> None:
        """Raises ConfigError for a declaration that this process cannot take over."""
        check_reloadable(self._started_with, registry)
        check_exposure(self._settings, registry.access)
        check_issued(registry, self._builder.issued.keys, now=time.time())

    async def _report_failure(self, cause: str) -> None:
        config = self._settings.config
        with suppress(ConfigError):  # a file that cannot be read has no values in the cause
            if config.is_file():
                text = await asyncio.to_thread(read_text, config)
                cause = without_values(cause, text, self._settings.environ)
        if cause != self._services.reload_error:
            _log.error("not reloaded; the last good state stays in service: %s", cause)
        self._services.reload_error = cause


def watched_files(settings: Settings) -> tuple[Path, ...]:
    """The watched files."""
    pointers = [settings.artifacts / kind / POINTER for kind in (ROUTER, ASSIGNMENT, GATE)]
    return (settings.config, *([settings.endpoints_file] if settings.endpoints_file else []), *pointers)


def file_states(files: tuple[Path, ...]) -> FileStates:
    """The current states of files."""
    states: list[tuple[int, int, int] | None] = []
    for path in files:
        try:
            found = path.stat()
            states.append((found.st_ino, found.st_size, found.st_mtime_ns))
        except OSError:
            states.append(None)
    return tuple(states)


def _digest(config: Path) -> bytes | None:
    try:
        return hashlib.sha256(config.read_bytes()).digest() if config.is_file() else None
    except OSError:
        return None


def check_reloadable(old: Registry, new: Registry) -> None:
    """Raises ConfigError for a change that a running process cannot apply."""
    changed = [
        name
        for name, previous, after in (
            ("log.url", old.log.url, new.log.url),
            ("log.keep_records", old.log.keep_records, new.log.keep_records),
            ("log.keep_days", old.log.keep_days, new.log.keep_days),
            ("artifacts", old.artifacts, new.artifacts),
            ("access.counters", old.access.counters, new.access.counters),
            ("cache.store", old.cache and old.cache.store, new.cache and new.cache.store),
            ("stored_responses", old.stored_responses, new.stored_responses),
            ("cache.max_bytes", old.cache and old.cache.max_bytes, new.cache and new.cache.max_bytes),
            *((f"residency.{name}", *pair) for name, pair in _residency_settings(old, new)),
        )
        if previous != after
    ]
    shares = old.residency is not None
    started = {spec.name: _server(spec, shares) for spec in old.experts if spec.runtime in LOCAL_RUNTIMES}
    changed += [
        f"the server of expert {spec.name!r}"
        for spec in new.experts
        if spec.name in started and started[spec.name] != _server(spec, shares)
    ]
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a change of this needs a restart")


def _residency_settings(old: Registry, new: Registry) -> Iterator[tuple[str, tuple[object, object]]]:
    """Yield the settings that the process keeps which started the servers, with their old and new values."""
    for name in ("devices", "sleep_memory_gb", "max_wait"):
        yield name, (getattr(old.residency, name, None), getattr(new.residency, name, None))


def _server(spec: ExpertSpec, shares_device: bool) -> tuple[object, ...]:
    """Return the settings that the server of a local expert was started with, and its place on a shared device."""
    place = (spec.device, spec.memory_gb, spec.pinned, spec.sleep_level) if shares_device else ()
    return spec.runtime, spec.model, spec.adapter, tuple(spec.options.items()), spec.gpus, spec.replicas, *place
