"""API keys and their accounts, a clock that a test sets, and amounts of use."""

from __future__ import annotations

import time
from typing import Any

from coe.artifacts.api_keys import digest_of
from coe.registry import ApiKey, KeyLimits
from gateway.access.limits import Account, Amounts, Limiter


class Clock:
    """The real time, moved `ahead` seconds. It stands at the beginning of a minute while `stands`, so that no minute
    ends in a test."""

    def __init__(self, *, stands: bool = False) -> None:
        self.ahead = 0.0
        self._began = time.time() // 60 * 60 if stands else None

    def __call__(self) -> float:
        return (time.time() if self._began is None else self._began) + self.ahead


def key_of(
    name: str = "alice", *, secret: str | None = None, limits: dict[str, Any] | None = None, **more: Any
) -> ApiKey:
    """A declared key; its secret is its name unless another one is given."""
    return ApiKey(name=name, sha256=digest_of(secret or name), limits=KeyLimits(**(limits or {})), **more)


def account_of(limiter: Limiter, **limits: float) -> Account:
    """The one account of a key with these limits."""
    return limiter.accounts([key_of(limits=limits)])["alice"]


def remaining_of(account: Account) -> list[float]:
    """What is left of each limit."""
    return [remaining for _, remaining, _ in account.state()]


ONE = Amounts(1, 0, 0)


def tokens(amount: float) -> Amounts:
    return Amounts(1, amount, 0)


def dollars(amount: float) -> Amounts:
    return Amounts(1, 0, amount)
