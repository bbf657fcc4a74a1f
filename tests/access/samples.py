"""API keys and their accounts, a clock that a test sets, and amounts of use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from coe.artifacts.api_keys import digest_of
from coe.registry import ApiKey, KeyLimits
from gateway.access.limits import Account, Amounts, Limiter


class Clock:
    """The real time, moved `ahead` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def key_of(
    name: str = "alice", *, secret: str | None = None, limits: dict[str, Any] | None = None, **more: Any
) -> ApiKey:
    """A declared key; its secret is its name unless another one is given."""
    return ApiKey(name=name, sha256=digest_of(secret or name), limits=KeyLimits(**(limits or {})), **more)


def account_of(limiter: Limiter, **limits: float) -> Account:
    """The one account of a key with these limits."""
    return limiter.accounts([key_of(limits=limits)])["alice"]


@contextmanager
def refilling(a_minute: float) -> Iterator[Callable[[], float]]:
    """Yields what a bucket has refilled since the block began: a busy machine takes seconds for a few requests."""
    began = time.monotonic()
    yield lambda: (time.monotonic() - began) * a_minute / 60


ONE = Amounts(1, 0, 0)


def tokens(amount: float) -> Amounts:
    return Amounts(1, amount, 0)


def dollars(amount: float) -> Amounts:
    return Amounts(1, 0, amount)
