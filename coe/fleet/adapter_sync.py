"""Keeps the LoRA adapters of running servers in sync with experts.yaml, without restarts.

`coe up` runs an `AdapterSync`, which checks the declaration twice a second. It loads new adapters, publishes the served
experts, and unloads removed adapters after a delay, in which gateways read the change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coe.errors import CoEError, ConfigError, FleetError
from coe.fleet.fleet import Fleet
from coe.fleet.planning import adapters_of, find_problems
from coe.registry import ExpertSpec
from coe.registry.experts import ServerKey

POLL_INTERVAL = 0.5
"""Seconds between two checks of the declaration."""
RETRY_INTERVAL = 5.0
"""Seconds after which a failed load is tried again: the server may just be starting."""
UNLOAD_DELAY = 3.0
"""Seconds between publishing that an expert is gone and unloading it; gateways read twice a second."""

FileVersion = tuple[int, int, int] | None


class AdapterSync:
    """Follows the declaration.

    `read` returns the declared experts or raises ConfigError, `publish` receives the served ones whenever they change,
    `report` a line for each event. Experts whose server does not run wait for the next start.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        config: Path,
        read: Callable[[], Sequence[ExpertSpec]],
        publish: Callable[[Sequence[ExpertSpec]], None],
        report: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._read = read
        self._publish = publish
        self._report = report
        self._last_report = ""

    async def watch(self, running: Mapping[ServerKey, str], serving: Sequence[ExpertSpec]) -> None:
        """Follows the file until cancelled. `running` maps the config of each running server to its key, `serving` are
        the experts published already."""
        applied, published = None, _published_by_name(serving, running)
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            version = _file_version(self._config)
            if version == applied:
                continue
            try:
                published = await self._apply(self._read(), running, published)
            except ConfigError:
                pass  # the gateway reads it too, and reports what is wrong
            except CoEError as error:
                self._report_once(
                    f"{error}\neverything else stays as it was; the next attempt is in {RETRY_INTERVAL:g} s"
                )
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            applied = version

    async def _apply(
        self, experts: Sequence[ExpertSpec], running: Mapping[ServerKey, str], published: Mapping[str, str]
    ) -> dict[str, str]:
        """Loads, publishes, unloads, in this order, so that no gateway requests a missing adapter."""
        base_folder = self._config.parent
        for index, _, what in find_problems(experts, base_folder=base_folder):
            raise FleetError(f"expert {experts[index].name!r}: {what}")
        served = [expert for expert in experts if expert.server_key in running]
        wanted = {
            key: adapters_of([expert for expert in served if expert.server_key == server], base_folder=base_folder)
            for server, key in running.items()
        }
        for key, adapters in wanted.items():
            for name in await self._fleet.server(key).load_adapters(adapters):
                self._report(f"server {key!r} has loaded the adapter {name!r}")
        names = _published_by_name(served, running)
        if names != published:
            self._publish(served)
        servers = {key: self._fleet.server(key) for key in wanted}
        stale = [(key, name) for key, one in servers.items() for name in one.spec.adapters if name not in wanted[key]]
        if stale:
            await asyncio.sleep(UNLOAD_DELAY)
        for key, name in stale:
            await servers[key].unload_adapter(name)
            self._report(f"server {key!r} has unloaded the adapter {name!r}")
        self._last_report = ""
        return names

    def _report_once(self, line: str) -> None:
        if line != self._last_report:
            self._report(line)
        self._last_report = line


def _published_by_name(experts: Sequence[ExpertSpec], running: Mapping[ServerKey, str]) -> dict[str, str]:
    """Maps each expert to what its address depends on: its server, and whether it is an adapter of that server."""
    return {one.name: f"{running[one.server_key]} {bool(one.adapter)}" for one in experts if one.server_key in running}


def _file_version(path: Path) -> FileVersion:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
