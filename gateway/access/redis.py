"""Counting the use of keys for several gateways together, in Redis; each for itself while that is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self
from uuid import uuid4

from coe.registry import ApiKey
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access.limits import meters_of
from gateway.access.redis_connection import LimitsRedis, RedisUnavailable
from gateway.access.shared_account import SharedAccount

_log = logging.getLogger("gateway")

TICK = 0.05
"""Seconds until what is not needed here is there for the others."""
RETRY = 1.0
"""Seconds between two looks whether Redis is back."""


class RedisLimiter:
    """A Limiter whose gateways never allow more together than one alone would. Needs Redis 6.2 or newer, or Valkey.

    Entered for as long as it serves: a task gives back what is not needed, keeps slots alive, and looks for Redis
    while it is away.
    """

    def __init__(
        self, url: str, *, clock: Callable[[], float] = time.time, task_failed: TaskFailed = ignore_failure
    ) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._task_failed = task_failed
        self._connection = LimitsRedis(url)
        self._clock = clock
        self._gateway = uuid4().hex
        self._accounts: dict[str, SharedAccount] = {}
        self._busy: set[SharedAccount] = set()
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.degraded = False

    async def __aenter__(self) -> Self:
        self._keeper = supervised(self._tend, "limits", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give everything back, as far as Redis answers."""
        assert self._keeper
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        for account in tuple(self._busy):
            if not self.degraded:
                await account.give_back(everything=True)
        await self._connection.aclose()

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, SharedAccount]:
        known, self._accounts = self._accounts, {}
        for key in keys:
            if meters := meters_of(key.limits):
                account = known.get(key.name) or SharedAccount(key.name, self)
                account.declare(meters)
                self._accounts[key.name] = account
        return self._accounts

    # --------------------------------------------------------------------------------------------- for accounts

    def now(self) -> float:
        return self._clock()

    def touch(self, account: SharedAccount) -> None:
        """The account holds something that others may need."""
        self._busy.add(account)
        if not self._wake.is_set():
            self._wake.set()

    async def step(self, key: str, arguments: list[str | float]) -> list[float]:
        """Do one step. Raises AwayError, after which everybody counts alone."""
        try:
            return await self._connection.take(key, [self._gateway, *arguments])
        except RedisUnavailable as error:
            self._detach(error)
            raise

    def _detach(self, error: RedisUnavailable) -> None:
        for account in {*self._accounts.values(), *self._busy}:
            account.detach()
        if not self.degraded:
            self.degraded = True
            self._wake.set()
            place = self._connection.place
            _log.warning("limits: %s: %s; until it is back each gateway counts for itself", place, error)

    # --------------------------------------------------------------------------------------------- in the background

    async def _tend(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(RETRY if self.degraded else TICK)
            if self.degraded:
                await self._reattach()
                continue
            for account in tuple(self._busy):
                await account.give_back()
                if not account.holds:
                    self._busy.discard(account)
            if not self._busy and not self.degraded:
                self._wake.clear()

    async def _reattach(self) -> None:
        while alone := [account for account in {*self._accounts.values(), *self._busy} if account.alone]:
            for account in alone:
                if not await account.attach():
                    return
        self.degraded = False
        _log.warning("limits: %s is back; the gateways count together again", self._connection.place)
