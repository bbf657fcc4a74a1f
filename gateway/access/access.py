"""The `access` section of experts.yaml in use: identifies callers, and gives each request its allowance.

`open_limiter` opens the counters that the section names, `check_counters` validates them, and `access_of` builds an
Access over them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from coe.core import Scope
from coe.errors import ConfigError, RequestError
from coe.registry import AccessSpec, Prices, Registry
from coe.runtime.api_keys import Caller, KeyRing
from coe.supervision import TaskFailed, ignore_failure
from gateway.access.allowance import UNLIMITED, Allowance, RequestAllowance, TokenAllowance, UsageOf
from gateway.access.browsers import BrowserPolicy
from gateway.access.durable import KEY_USAGE_FILE, DurableLimiter
from gateway.access.limits import MEMORY, Amounts, Limiter, meters_of
from gateway.access.memory import MemoryLimiter
from gateway.access.redis import RedisLimiter, limits_client


class Access:
    """Immutable: a reload makes a new one over the same limiter, which keeps the counts.

    `prices` are the experts' prices by name. Money is reserved by the price of the expert that a request pins, or by
    the highest prices for a routed request. `host` is the address that the gateway listens on.
    """

    def __init__(
        self,
        spec: AccessSpec,
        limiter: Limiter | None = None,
        *,
        prices: Mapping[str, Prices] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.browsers = BrowserPolicy(spec.allowed_origins, spec.allowed_hosts, host=host)
        self._keys = KeyRing(spec.keys)
        self._accounts = (limiter or MemoryLimiter()).accounts(spec.keys)
        self._prices = prices or {}
        declared = self._prices.values()
        self._highest_prices = Prices(
            input=max((price.input for price in declared), default=0.0),
            output=max((price.output for price in declared), default=0.0),
        )
        self._minimum = Amounts(1, 1, min((price.input for price in declared), default=0.0) / 1e6)

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller, whose key must have `scope` (None: any known key). Raises Unauthorized or Forbidden."""
        return self._keys.identify(headers, scope)

    def is_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the caller's key has the admin scope, for all tenants."""
        try:
            self._keys.identify(headers, "admin")
        except RequestError:
            return False
        return True

    def allowance(self, caller: Caller, usage_of: UsageOf) -> Allowance:
        """What one request may use; free of cost for a key without limits.

        Enter it before the body is read: it raises LimitReached where nothing remains. On exit it calls `usage_of` for
        what was used.
        """
        if caller.key is None or (account := self._accounts.get(caller.key)) is None:
            return UNLIMITED
        return TokenAllowance(account, caller.key, minimum=self._minimum, prices_of=self._prices_of, usage_of=usage_of)

    def request_allowance(self, caller: Caller) -> Allowance:
        """The allowance of a request that calls no expert: it counts as one request without tokens and money."""
        account = self._accounts.get(caller.key) if caller.key is not None else None
        return UNLIMITED if account is None else RequestAllowance(account)

    def _prices_of(self, model: str) -> Prices:
        """The prices of the expert that a request pins; the highest of all experts for a routed request."""
        return self._prices.get(model, self._highest_prices)


def access_of(registry: Registry, limiter: Limiter, *, host: str = "127.0.0.1") -> Access:
    """The Access of a declaration over `limiter`."""
    prices = {expert.name: expert.prices for expert in registry.experts}
    return Access(registry.access, limiter, prices=prices, host=host)


@asynccontextmanager
async def open_limiter(
    counters: str, *, home: Path, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[Limiter]:
    """Opens the limiter that `access.counters` names. In-process counts are stored in the state folder `home`.

    Raises ConfigError for an invalid address. While Redis is down this process counts by itself.
    """
    if counters == MEMORY:
        async with DurableLimiter(home / KEY_USAGE_FILE, task_failed=task_failed) as durable:
            yield durable
        return
    async with RedisLimiter(counters, task_failed=task_failed) as limiter:
        yield limiter


def check_counters(spec: AccessSpec, *, workers: int) -> None:
    """Raises ConfigError for an invalid address, and if several processes would each count separately."""
    if spec.counters != MEMORY:
        limits_client(spec.counters)
    elif workers > 1 and any(meters_of(key.limits) for key in spec.keys):
        raise ConfigError(
            f"access.counters: {workers} worker processes would each count the limits of access.keys for themselves; "
            "write counters: redis://HOST:6379/0, or set COE_WORKERS=1"
        )
