"""Counts the use of API keys for several gateways together, in Redis. Needs Redis 6.2 or newer, or Valkey.

Counts in Redis change only by a refill, one script call, which grants all that is requested or nothing. Accounts lease
amounts in advance (`shared_account.py`), so most requests need no call. While Redis is down each gateway counts by
itself, and `degraded` is True.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self
from uuid import uuid4

from coe.redis import RedisClient
from coe.registry import ApiKey
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access.limits import meters_of
from gateway.access.shared_account import RedisUnavailable, SharedAccount

_log = logging.getLogger("gateway")

RETURN_INTERVAL_SECONDS = 0.05
"""Interval at which accounts are checked for a surplus to return."""
RECONNECT_SECONDS = 1.0
"""Interval of attempts to reach a Redis that is down."""
REFILL_TIMEOUT_SECONDS = 0.2
"""Time limit of a refill, connecting included; a request waits for it."""
REFILL_GRACE_SECONDS = 0.05
"""Additional time for a reply that arrived while the event loop of this process was busy."""
CONNECT_TIMEOUT_SECONDS = 5.0
"""Time limit of opening the connections again after a failure. Opening one takes several round trips. To a distant
Redis this takes longer than the time limit of a refill, after which the connection is closed."""
MAX_CONNECTIONS = 8

# KEYS: the key's counts (hash), its leases of slots and buckets by gateway (hash). ARGV: the gateway, the seconds for
# which its leases are kept, then nine arguments a meter:
#   kind (bucket, window, slots), name, limit, number of the calendar window
#   held: the amount that the gateway keeps
#   waiting: the amount that its waiting requests spend at once if it is granted; slots stay leased
#   returned: the amount that the gateway releases (negative: spent beyond its lease); slots need none
#   least: the minimum to grant; if any meter has less, nothing is granted of any meter
#   most: the amount to grant if the meter has enough
# Returns the number of the first meter that has less than `least` (0: none), then for each meter the granted and the
# remaining amount.
# Counts are floats. Redis would truncate returned numbers to integers, so they are returned as text.
# A bucket refills by the server's clock, so gateways need not agree on the time; they name the calendar window.
# A bucket and its leases never exceed the limit together: it does not refill in the place of leased units.
REFILL = """
local function text(number) return string.format('%.17g', number) end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local gateway, lease = ARGV[1], tonumber(ARGV[2])
local own, others = {}, {}
local leases = redis.call('HGETALL', KEYS[2])
for i = 1, #leases, 2 do
  local owner, name = string.match(leases[i], '^(.-):(.+)$')
  local count, ends = string.match(leases[i + 1], '^(.-):(.+)$')
  if tonumber(ends) < now then redis.call('HDEL', KEYS[2], leases[i])
  elseif owner == gateway then own[name] = tonumber(count)
  else others[name] = (others[name] or 0) + tonumber(count) end
end
local meters, lacking = {}, 0
for p = 3, #ARGV, 9 do
  local m = {kind = ARGV[p], name = ARGV[p + 1], limit = tonumber(ARGV[p + 2]), window = tonumber(ARGV[p + 3]),
    held = tonumber(ARGV[p + 4]), waiting = tonumber(ARGV[p + 5]), returned = tonumber(ARGV[p + 6]),
    least = tonumber(ARGV[p + 7]), most = tonumber(ARGV[p + 8])}
  local free = m.limit - (others[m.name] or 0)
  if m.kind == 'bucket' then
    local stored = redis.call('HMGET', KEYS[1], m.name, m.name .. ':at')
    local level = tonumber(stored[1] or m.limit) + math.max(0, now - tonumber(stored[2] or now)) * m.limit / 60
    m.left = math.min(free - m.held, math.min(free - (own[m.name] or 0), level) + m.returned)
  elseif m.kind == 'window' then
    local stored = redis.call('HMGET', KEYS[1], m.name, m.name .. ':window')
    local spent, window = tonumber(stored[1] or 0), tonumber(stored[2] or m.window)
    if window < m.window then spent, window = 0, m.window end
    m.window = window
    m.left = m.limit - math.max(0, spent - m.returned)
  else
    m.left = free - m.held
  end
  meters[#meters + 1] = m
  if lacking == 0 and m.least > 0 and m.left + m.limit * 1e-9 < m.least then lacking = #meters end
end
local reply = {text(lacking)}
for _, m in ipairs(meters) do
  local granted = 0
  if lacking == 0 then
    granted = math.max(m.least, math.min(m.most, m.left))
    m.held = m.held + granted - m.waiting
  end
  m.left = m.left - granted
  if m.kind == 'window' then
    redis.call('HSET', KEYS[1], m.name, text(m.limit - m.left), m.name .. ':window', text(m.window))
  elseif m.held > 0 then
    redis.call('HSET', KEYS[2], gateway .. ':' .. m.name, text(m.held) .. ':' .. text(now + lease))
  else
    redis.call('HDEL', KEYS[2], gateway .. ':' .. m.name)
  end
  if m.kind == 'bucket' then redis.call('HSET', KEYS[1], m.name, text(m.left), m.name .. ':at', text(now)) end
  reply[#reply + 1] = text(granted)
  reply[#reply + 1] = text(m.left)
end
redis.call('EXPIRE', KEYS[1], 3456000)
redis.call('EXPIRE', KEYS[2], math.ceil(lease))
return reply
"""


def limits_client(url: str) -> RedisClient:
    """The client for `access.counters`. Its callers bound the time of every command, and its pool repeats none. Raises
    ConfigError when `url` cannot be a Redis address."""
    return RedisClient(
        url,
        key="access.counters",
        error=RedisUnavailable,
        connections=MAX_CONNECTIONS,
        connect_timeout=None,
        timeout=None,
        retries=0,
    )


class RedisLimiter:
    """A Limiter over counts in Redis: all gateways together allow no more than one gateway alone would.

    It is an async context manager. A background task returns unused amounts, renews slots, and reconnects to Redis.
    """

    def __init__(
        self, url: str, *, clock: Callable[[], float] = time.time, task_failed: TaskFailed = ignore_failure
    ) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._task_failed = task_failed
        self._redis = limits_client(url)
        self._script = self._redis.client.register_script(REFILL)
        self.now = clock
        self._gateway = uuid4().hex
        self._accounts: dict[str, SharedAccount] = {}
        self._open: set[SharedAccount] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.degraded = False

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "limits", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Returns everything, as far as Redis replies."""
        assert self._task
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for account in tuple(self._open):
            if not self.degraded:
                await account.return_surplus(everything=True)
        await self._redis.aclose()

    def accounts(self, keys: Iterable[ApiKey]) -> Mapping[str, SharedAccount]:
        known, self._accounts = self._accounts, {}
        for key in keys:
            if meters := meters_of(key.limits):
                account = known.get(key.name) or SharedAccount(key.name, self)
                account.declare(meters)
                self._accounts[key.name] = account
        return self._accounts

    # --------------------------------------------------------------------------------------------- for accounts

    def mark_open(self, account: SharedAccount) -> None:
        """The account may hold something to return later."""
        self._open.add(account)
        if not self._wake.is_set():
            self._wake.set()

    async def refill(self, key: str, arguments: list[str | float]) -> list[float]:
        """Runs the refill script for the API key named `key`. Raises RedisUnavailable, after which all accounts are
        offline."""
        try:
            return await self._run_script(key, [self._gateway, *arguments])
        except RedisUnavailable as error:
            self._go_offline(error)
            raise

    async def _run_script(self, key: str, arguments: list[str | float]) -> list[float]:
        counts = f"coe:use:{{{key}}}"  # the braces put both keys into one slot of a Redis cluster
        reply = asyncio.ensure_future(self._redis.run(self._script(keys=[counts, f"{counts}:leases"], args=arguments)))
        try:
            for seconds in (REFILL_TIMEOUT_SECONDS, REFILL_GRACE_SECONDS):
                await asyncio.wait((reply,), timeout=seconds)
                if reply.done():
                    return [float(number) for number in reply.result()]
        except RedisUnavailable:
            raise
        except Exception as error:  # a bug in the client library must not fail a request
            raise RedisUnavailable(f"{self._redis.place}: {error!r}") from error
        finally:
            reply.cancel()
        raise RedisUnavailable(self._redis.describe(TimeoutError()))

    def _go_offline(self, error: RedisUnavailable) -> None:
        for account in {*self._accounts.values(), *self._open}:
            account.go_offline()
        if not self.degraded:
            self.degraded = True
            self._wake.set()
            _log.warning("limits: %s; until it is back each gateway counts for itself", error)

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(RECONNECT_SECONDS if self.degraded else RETURN_INTERVAL_SECONDS)
            if self.degraded:
                await self._go_online()
                continue
            for account in tuple(self._open):
                await account.return_surplus()
                if not account.is_open:
                    self._open.discard(account)
            if not self._open and not self.degraded:
                self._wake.clear()

    async def _go_online(self) -> None:
        if not await self._connect():
            return
        while offline := [account for account in {*self._accounts.values(), *self._open} if account.offline]:
            for account in offline:
                if not await account.go_online():
                    return
        self.degraded = False
        _log.warning("limits: %s is back; the gateways count together again", self._redis.place)

    async def _connect(self) -> bool:
        """Opens all connections, so that no refill has to wait for one. Returns whether Redis replied over any."""
        pings = (self._redis.run(self._redis.client.ping()) for _ in range(MAX_CONNECTIONS))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                replies = await asyncio.gather(*pings, return_exceptions=True)
        except TimeoutError:
            return False
        return not all(isinstance(reply, Exception) for reply in replies)
