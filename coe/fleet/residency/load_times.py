"""Keeps the learned load times of experts that share a device in a file, across restarts and for `coe plan`.

The file is JSON: by expert, the seconds to awake from `asleep` and from `stopped`, and a digest of the declared server.
Entries of another declaration, such as a smaller model, and entries that are not plausible are ignored, since a wrong
time would misdirect the scheduler until it has learned better. The next measured load drops them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from coe.fleet.residency.state import Tier
from coe.registry import ExpertSpec

LOAD_TIMES_FILE = "load-times.json"
MIN_SECONDS, MAX_SECONDS = 0.001, 3600.0
"""Load times outside are not plausible."""
_TIERS: tuple[Tier, ...] = ("asleep", "stopped")


class LoadTimes:
    """The times of the declared `experts` in the file at `path`. A time that was never measured is absent."""

    def __init__(
        self, path: Path, experts: Iterable[ExpertSpec], *, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._path, self._report = path, report
        self._servers = {expert.name: _digest(expert) for expert in experts}
        self._times: dict[str, dict[Tier, float]] = {}
        self._read()

    def _read(self) -> None:
        try:
            found = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._report(f"{self._path}: ignored, load times are learned again ({error})")
            return
        for expert, server in self._servers.items():
            times = found.get(expert) if isinstance(found, dict) else None
            if isinstance(times, dict) and times.get("server") == server and (kept := _plausible(times)):
                self._times[expert] = kept

    def of(self, expert: str) -> Mapping[Tier, float]:
        """Seconds to awake, by tier."""
        return self._times.get(expert, {})

    def record(self, experts: Sequence[str], tier: Tier, seconds: float) -> None:
        """Keeps the time from `tier` for experts on one server. A file that cannot be written is reported, not
        raised."""
        kept = _plausible({tier: seconds})
        for expert in experts:
            self._times[expert] = {**self._times.get(expert, {}), **kept}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_name(f".{self._path.name}")
            entries = {expert: {"server": self._servers[expert], **times} for expert, times in self._times.items()}
            draft.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
            draft.replace(self._path)
        except OSError as error:
            self._report(f"{self._path}: load times cannot be kept ({error})")


def _digest(expert: ExpertSpec) -> str:
    """Changes with the declared server. Default flags do not count, since some depend on the reading process."""
    declared = (expert.runtime, expert.model, dict(expert.options), expert.gpus, expert.sleep_level)
    return hashlib.sha256(orjson.dumps(declared, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _plausible(times: Mapping[Any, Any]) -> dict[Tier, float]:
    found: dict[Tier, float] = {}
    for tier in _TIERS:
        seconds = times.get(tier)
        if isinstance(seconds, int | float) and math.isfinite(seconds) and MIN_SECONDS <= seconds <= MAX_SECONDS:
            found[tier] = float(seconds)
    return found
