"""Values and protocols of limits: amounts, meters, accounts and limiters.

A Meter is one declared limit of a key. A Limiter has an Account for every key with limits: in memory, in a file, or
shared in Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from coe.errors import InvalidRequest, LimitReached, RequestError
from coe.registry import ApiKey, KeyLimits

Name = Literal[
    "concurrent_requests", "requests_per_minute", "tokens_per_minute", "dollars_per_day", "dollars_per_month"
]
_UNITS: dict[Name, int] = {
    "concurrent_requests": 0,
    "requests_per_minute": 0,
    "tokens_per_minute": 1,
    "dollars_per_day": 2,
    "dollars_per_month": 2,
}


MEMORY = "memory"
"""The value of `access.counters` for counts in the process, kept in the state folder."""


class Amounts(NamedTuple):
    """What one request uses or may use; each meter counts one of the three."""

    requests: float
    tokens: float
    dollars: float


@dataclass(frozen=True, slots=True)
class Meter:
    """One declared limit of one key. `unit` is the index in Amounts of what it counts."""

    name: Name
    limit: float
    unit: int


class Account(Protocol):
    """What remains for one API key."""

    @property
    def meters(self) -> tuple[Meter, ...]: ...

    async def reserve(self, amounts: Amounts) -> Any:
        """Reserves all of `amounts` or nothing. Returns the argument for `settle`. Raises LimitReached, or
        InvalidRequest for more than a limit ever allows."""

    def settle(self, reservation: Any, used: Amounts) -> None:
        """Replaces a reservation by what was `used`: returns the rest, or charges more. Releases the concurrent
        request. Call it once per reservation."""

    def remaining(self) -> list[float]:
        """What remains of each meter, as far as this process knows; negative if more was used than estimated."""


class Limiter(Protocol):
    """Counts the use of keys. All implementations pass one test suite.

    `degraded` is True while counts that should be shared or stored are not.
    """

    degraded: bool

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, Account]:
        """The account of each key that has limits, by the key's name. Keys that were passed before keep their counts;
        counts of others are dropped."""


def meters_of(limits: KeyLimits) -> tuple[Meter, ...]:
    """The declared meters, in the order in which they are checked."""
    declared = ((name, unit, getattr(limits, name)) for name, unit in _UNITS.items())
    return tuple(Meter(name, float(limit), unit) for name, unit, limit in declared if limit is not None)


def limit_error(key: str, meter: Meter, amount: float, *, wait: float) -> RequestError:
    """The error for a meter that lacks `amount` for `wait` seconds, or always."""
    limit = f"{meter.name} of the API key {key!r} ({'$' if meter.unit == 2 else ''}{meter.limit:g})"
    if amount > meter.limit:
        message = f"this request may use {amount:.4g}, more than the {limit} ever allows; lower max_tokens"
        return InvalidRequest(message, param="max_tokens", code="request_exceeds_limit")
    message = f"the {limit} is used up; try again in {max(wait, 0.001):.3g} s"
    return LimitReached(message, retry_after=wait)
