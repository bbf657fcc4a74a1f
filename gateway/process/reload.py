"""Applies changes of experts.yaml and of promoted artifacts while the gateway serves.

A new state is read, checked and built completely before it replaces the old one. On any error the old one stays, the
log gives the cause once, and `coe_reload_failed` and /health/ready show it. Running requests keep the state that they
began with.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from coe.artifacts.active_state import ActiveState
from coe.artifacts.consequences import log_consequences
from coe.errors import CoEError, ConfigError
from coe.registry import ExpertSpec, Registry
from coe.registry.hints import without_values
from coe.registry.runtimes import LOCAL_RUNTIMES
from coe.registry.yaml_source import read_text
from coe.settings import Settings
from coe.supervision import TaskFailed, ignore_failure, log_failure, supervised
from gateway.access import check_exposure
from gateway.access.issued_keys import check_issued
from gateway.process.watched_files import FileStates, digests, file_states, files_to_repair, watched_files
from gateway.serving_state import Serving, ServingState, Wiring

POLL_SECONDS = 0.5
"""Interval of checks of the files."""
SETTLE_SECONDS = 0.1
"""Time that the files must stay unchanged before they are read, since one may be half written."""

Reader = Callable[[Settings, ActiveState | None], ActiveState]
"""Reads the active state, given the previous one (None at the start)."""

_log = logging.getLogger("gateway")


class Reload:
    """Watches the files and applies changes while the block of `watching` runs."""

    def __init__(
        self,
        current: ServingState,
        *,
        settings: Settings,
        in_use: ActiveState,
        wiring: Wiring,
        read: Reader,
    ) -> None:
        self._current = current
        self._settings = settings
        self._in_use = in_use
        self._wiring = wiring
        self._read = read
        self._started_with = in_use.registry
        self._files = watched_files(settings)
        self._requested = asyncio.Event()
        self._warming: asyncio.Task[None] | None = None
        self._config_digest: bytes | None = None
        self._read_states: FileStates = ()
        """States of `files_to_repair` before the last reload."""

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
        contents = await asyncio.to_thread(digests, self._files)
        states = file_states(self._files)  # after the contents: those of unchanged files are the ones that were read
        if states != since:
            states = await self._settled_states()
            contents = await asyncio.to_thread(digests, self._files)
            await self._apply(contents[0])
        elif self._current.reload_error is None:
            self._config_digest = contents[0]
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._requested.wait()
            requested = self._requested.is_set()
            self._requested.clear()
            await self._wiring.close_retired()
            if not (requested or file_states(self._files) != states or await self._is_repaired()):
                continue
            states = await self._settled_states()
            previous, contents = contents, await asyncio.to_thread(digests, self._files)
            # after a failure unchanged files are read again, because a damaged version may have been replaced
            if requested or contents != previous or self._current.reload_error is not None:
                await self._apply(contents[0])

    async def _is_repaired(self) -> bool:
        """True if the last reload failed, and an artifact that it read has changed since."""
        return self._current.reload_error is not None and await self._repair_states() != self._read_states

    async def _repair_states(self) -> FileStates:
        return await asyncio.to_thread(lambda: file_states(files_to_repair(self._settings)))

    async def _settled_states(self) -> FileStates:
        states = file_states(self._files), await self._repair_states()
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            previous, states = states, (file_states(self._files), await self._repair_states())
            if states == previous:
                return states[0]

    async def _apply(self, config_digest: bytes | None) -> None:
        """Read the files and serve their state."""
        self._read_states = await self._repair_states()
        try:
            await asyncio.to_thread(_check_kind, self._settings.config)
            in_use = await asyncio.to_thread(self._read, self._settings, self._in_use)
            self.check(in_use.registry)
            serving = self._wiring.serving(in_use)
        except CoEError as error:
            await self._report_failure(str(error))
        except Exception as error:  # a bug while loading the new state must not end the reload task
            await self._report_failure(repr(error))
        else:
            if in_use.consequences != self._in_use.consequences:
                log_consequences(in_use.consequences)
            is_indexed_anew = in_use.index is not None and in_use.index is not self._in_use.index
            self._in_use = in_use
            self._current.replace(serving)
            if is_indexed_anew:
                self._warm(serving)
            self._current.reload_error, self._config_digest = None, config_digest
            router, plan = serving.composition.router.version, serving.plan or "as declared"
            _log.warning("reloaded: config %s, router %s, plan %s", serving.registry.digest, router, plan)

    def _warm(self, serving: Serving) -> None:
        """Search a new document index once in the background, since a slow store must not delay the next reload."""
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.create_task(serving.composition.warm(), name="coe-warm")
        self._warming.add_done_callback(log_failure)

    def check(self, registry: Registry) -> None:
        """Raises ConfigError for a declaration that this process cannot take over."""
        check_reloadable(self._started_with, registry)
        check_exposure(self._settings, registry.access)
        check_issued(registry, self._wiring.issued.keys, now=time.time())

    async def _report_failure(self, cause: str) -> None:
        with suppress(OSError, ConfigError):  # a file that cannot be read has no values in the cause
            await asyncio.to_thread(_check_kind, self._settings.config)
            text = await asyncio.to_thread(read_text, self._settings.config)
            cause = without_values(cause, text, self._settings.environ)
        self._current.reload_error = cause
        _log.error("not reloaded; the last good state stays in service: %s", cause)


def _check_kind(config: Path) -> None:
    """Raises ConfigError for a pipe or device: to read it again may wait for ever, after which nothing is reloaded."""
    mode = config.stat().st_mode if config.exists() else stat.S_IFREG  # the reader reports a missing file
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(f"{config}: neither a file nor a link to one; write the declaration to a file")


def check_reloadable(old: Registry, new: Registry) -> None:
    """Raises ConfigError for a change that a running process cannot apply."""
    changed = [
        name
        for name, previous, after in (
            ("log.url", old.log.url, new.log.url),
            ("log.keep_records", old.log.keep_records, new.log.keep_records),
            ("log.keep_days", old.log.keep_days, new.log.keep_days),
            ("log.store_embeddings", old.log.store_embeddings, new.log.store_embeddings),
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
    return spec.runtime, spec.model, tuple(spec.options.items()), spec.gpus, spec.replicas, *place
