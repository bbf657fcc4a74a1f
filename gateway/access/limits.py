"""What an API key may use, as values, and the seam behind which that is counted."""

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


class Use(NamedTuple):
    """What one request uses, or may use; a limit counts one of the three."""

    requests: float
    tokens: float
    dollars: float


@dataclass(frozen=True, slots=True)
class Meter:
    """One declared limit of one key. `unit` is the place of what it counts in a Use."""

    name: Name
    limit: float
    unit: int


class Account(Protocol):
    """What one API key has left."""

    @property
    def meters(self) -> tuple[Meter, ...]: ...

    async def take(self, use: Use) -> Any:
        """Reserve all of `use` at once, or nothing. Returns what `settle` needs. Raises LimitReached, or
        InvalidRequest for what no waiting can help."""

    def settle(self, taken: Any, used: Use) -> None:
        """Correct what was taken by what was `used`: the rest goes back, what is missing is charged. To be called once
        for everything taken; gives the place among the concurrent requests back."""

    def left(self) -> list[float]:
        """What is left for each meter, as far as is known here; negative where more was used than was estimated."""


class Limiter(Protocol):
    """Counts the use of keys. Every implementation passes one suite.

    `degraded` is True while several gateways should count together and each counts for itself.
    """

    degraded: bool

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, Account]:
        """One account for each of the keys that has limits, by the key's name; counts of keys named before are kept,
        those of others forgotten."""


def meters_of(limits: KeyLimits) -> tuple[Meter, ...]:
    """The declared ones, in the order in which they are asked."""
    declared = ((name, unit, getattr(limits, name)) for name, unit in _UNITS.items())
    return tuple(Meter(name, float(limit), unit) for name, unit, limit in declared if limit is not None)


def refusal(key: str, meter: Meter, amount: float, *, wait: float) -> RequestError:
    """The error for a meter that lacks `amount` for `wait` seconds, or always."""
    limit = f"{meter.name} of the API key {key!r} ({'$' if meter.unit == 2 else ''}{meter.limit:g})"
    if amount > meter.limit:
        message = f"this request may use {amount:.4g}, more than the {limit} ever allows; lower max_tokens"
        return InvalidRequest(message, param="max_tokens", code="request_exceeds_limit")
    message = f"the {limit} is used up; try again in {max(wait, 0.001):.3g} s"
    return LimitReached(message, retry_after=wait)
