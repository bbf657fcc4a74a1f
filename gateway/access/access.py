"""The declared keys at work: who may come in, and what each may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coe.core import Scope
from coe.errors import RequestError
from coe.registry import AccessSpec as AccessSpec
from coe.registry import Prices, Registry
from coe.runtime.api_keys import Caller, KeyRing
from gateway.access.allowance import FREE, Allowance, Counted, Metered, Spent
from gateway.access.browsers import BrowserPolicy
from gateway.access.limits import Limiter, Use
from gateway.access.memory import MemoryLimiter


class Access:
    """Immutable: a reload makes a new one over the same limiter, which keeps the counts.

    `prices` are the experts', by name: money is reserved by those of the expert that a request pins, and by the
    dearest where it is routed. `host` is where the gateway listens.
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
        self._dearest = Prices(
            input=max((price.input for price in declared), default=0.0),
            output=max((price.output for price in declared), default=0.0),
        )
        self._least = Use(1, 1, min((price.input for price in declared), default=0.0) / 1e6)

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller whose key may do `scope`; any known key may do None. Raises Unauthorized or Forbidden."""
        return self._keys.identify(headers, scope)

    def administers(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the caller's key may administer, all tenants."""
        try:
            self._keys.identify(headers, "admin")
        except RequestError:
            return False
        return True

    def allowance(self, caller: Caller, spent: Spent) -> Allowance:
        """What one request may use. To be entered before its body is read, which raises LimitReached where nothing is
        left; `spent` is called on leaving. Costs nothing for a key without limits."""
        if caller.key is None or (account := self._accounts.get(caller.key)) is None:
            return FREE
        return Metered(account, caller.key, least=self._least, prices_of=self._prices_of, spent=spent)

    def inquiry(self, caller: Caller) -> Allowance:
        """The same for a request that asks no expert: it counts as one, and uses no tokens and no money."""
        account = self._accounts.get(caller.key) if caller.key is not None else None
        return FREE if account is None else Counted(account)

    def _prices_of(self, model: str) -> Prices:
        """Of the expert that a request pins; the highest of all experts for a request that is routed."""
        return self._prices.get(model, self._dearest)


def access_of(registry: Registry, limiter: Limiter, *, host: str = "127.0.0.1") -> Access:
    """What a declaration says about access, at work over `limiter`."""
    prices = {expert.name: expert.prices for expert in registry.experts}
    return Access(registry.access, limiter, prices=prices, host=host)
