"""Applies changes of experts.yaml and of promoted artifacts while the gateway serves.

A new state is read, checked and built completely before it replaces the old one. On any error the old one stays, the
log gives the cause once, and `coe_degraded` and /health/ready show it. The files are then read again every
RETRY_SECONDS, since a damaged one may have been repaired. Running requests keep the state that they began with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from coe.artifacts.active_state import ActiveState
from coe.artifacts.manifest import ASSIGNMENT, GATE, ROUTER
from coe.artifacts.store import POINTER
from coe.artifacts.versions import log_consequences
from coe.errors import CoEError, ConfigError
from coe.registry import ExpertSpec, Registry
from coe.registry.runtimes import LOCAL_RUNTIMES
from coe.registry.yaml_source import read_text, without_values
from coe.settings import Settings
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access.access import check_exposure
from gateway.access.issued_keys import check_issued
from gateway.services import Services
from gateway.snapshot import SnapshotBuilder

POLL_SECONDS = 0.25
"""Interval of checks of the files. They are read once two checks in succession see the same change."""
RETRY_SECONDS = 10.0
"""Time after a failure until the files are read again although none has changed."""

FileStates = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and modification time of every watched file; None for a missing one."""
Reader = Callable[[Settings, ActiveState | None], ActiveState]
"""Reads the active state, given the previous one (None at the start)."""

_log = logging.getLogger("gateway")


class Reload:
    """Watches the files and applies changes while the block of `watching` runs."""

    _warming: asyncio.Task[None] | None = None

    def __init__(self, services: Services, *, in_use: ActiveState, builder: SnapshotBuilder, read: Reader) -> None:
        self._services, self._settings = services, services.settings
        self._in_use, self._started_with = in_use, in_use.registry
        self._builder, self._read = builder, read
        self._files = watched_files(services.settings)
        self._requested = asyncio.Event()

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

    async def _run(self, read: FileStates) -> None:
        previous, retry_at = read, math.inf
        while True:
            states = file_states(self._files)
            has_changed = states == previous != read  # a file that changed since the last check may be half written
            if self._requested.is_set() or has_changed or time.monotonic() >= retry_at:
                self._requested.clear()
                read = states
                await self._apply()
                retry_at = math.inf if self._services.reload_error is None else time.monotonic() + RETRY_SECONDS
            previous = states
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._requested.wait()
            await self._builder.close_replaced()

    async def _apply(self) -> None:
        """Read the files and serve their state."""
        try:
            in_use = await asyncio.to_thread(self._read_files)
            self.check(in_use.registry)
            snapshot = self._builder.build(in_use)
        except Exception as error:  # also a bug while loading the new state, which must not end the reload task
            await self._report_failure(str(error) if isinstance(error, CoEError) else repr(error))
            return
        if in_use.consequences != self._in_use.consequences:
            log_consequences(in_use.consequences)
        is_indexed_anew = in_use.index is not self._in_use.index
        self._in_use = in_use
        self._services.replace(snapshot)  # at once: a key that is revoked after `build` must not come back
        if is_indexed_anew:  # in the background, since a slow store must not delay the next reload
            self._warming = asyncio.create_task(snapshot.composition.warm(), name="coe-warm")
        self._services.reload_error = None
        router, plan = snapshot.composition.router.version, snapshot.plan or "as declared"
        _log.warning("reloaded: config %s, router %s, plan %s", snapshot.registry.digest, router, plan)

    def _read_files(self) -> ActiveState:
        """The state. Raises ConfigError for a pipe or device in place of experts.yaml, which might have no end."""
        config = self._settings.config
        if config.exists() and not config.is_file():
            raise ConfigError(f"{config}: neither a file nor a link to one; write the declaration to a file")
        return self._read(self._settings, self._in_use)

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


_FIXED = (
    *("log.url", "log.keep_records", "log.keep_days", "artifacts", "access.counters"),
    *("cache.store", "cache.max_bytes", "stored_responses"),
    *("residency.devices", "residency.sleep_memory_gb", "residency.max_wait"),
)
"""Settings that a process keeps from its start."""


def check_reloadable(old: Registry, new: Registry) -> None:
    """Raises ConfigError for a change that a running process cannot apply."""
    values = [[_value(registry, name) for name in _FIXED] for registry in (old, new)]
    changed = [name for name, before, after in zip(_FIXED, *values, strict=True) if before != after]
    shares = old.residency is not None
    started = {spec.name: _server(spec, shares) for spec in old.experts if spec.runtime in LOCAL_RUNTIMES}
    changed += [
        f"the server of expert {spec.name!r}"
        for spec in new.experts
        if spec.name in started and started[spec.name] != _server(spec, shares)
    ]
    if changed:
        raise ConfigError(f"{', '.join(changed)}: a change of this needs a restart")


def _value(value: object, name: str) -> object:
    """The setting of this dotted name; None if a part is not declared."""
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _server(spec: ExpertSpec, shares_device: bool) -> tuple[object, ...]:
    """Return the settings that the server of a local expert was started with, and its place on a shared device."""
    place = (spec.device, spec.memory_gb, spec.pinned, spec.sleep_level) if shares_device else ()
    return spec.runtime, spec.model, spec.adapter, tuple(spec.options.items()), spec.gpus, spec.replicas, *place
