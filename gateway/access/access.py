"""The `access` section of experts.yaml in use: identifies callers, and gives requests their allowances.

An Access identifies the callers of one declaration. `open_affinity` opens the experts of conversations beside the
counters that the section names.

The allowance of one request of a key with limits: reserves an estimate before the call and charges the use after it.

An Allowance is an async context around a request. It also writes the rate-limit headers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from coe.artifacts.api_keys import MAX_KEY_BYTES, rule_of
from coe.core import Chat, ExpertRule, Scope
from coe.errors import Forbidden, RequestError, Unauthorized
from coe.outage import Outage
from coe.registry import ApiKey, Registry
from coe.registry.sections import FILE
from coe.routing.conversation import Affinity
from coe.routing.eligibility import exclusion
from coe.usage import SentCall
from gateway.access.browsers import BrowserPolicy
from gateway.access.estimate import CHARACTERS_PER_TOKEN, Pricing, input_tokens, output_tokens
from gateway.access.issued_keys import IssuedKeys, access_with, date_of
from gateway.access.limits import Account, Amounts, Limiter, Reservation
from gateway.shared_store import RedisStore, SharedCache

ONE_REQUEST = Amounts(1, 0, 0)
_HEADER_NAMES = {
    f"{unit}_per_minute": tuple(f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset"))
    for unit in ("requests", "tokens")
}
"""The names of the headers about the limit, the remaining amount and the reset of each limit that has them."""


class Allowance:
    """Reserves the amounts that one request may use on entry, and charges the used ones on exit, as an async context.

    This base class has no limits and does nothing. Entering a limited allowance may raise LimitReached.
    """

    __slots__ = ()

    async def __aenter__(self) -> Allowance:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        """Reserves what the answer to this chat of `size` bytes may use; `recipe` is that of RequestOptions. Raises
        LimitReached, or InvalidRequest for more than a limit ever allows."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The remaining amounts, as OpenAI's x-ratelimit headers."""
        return []


UNLIMITED = Allowance()


class LimitedAllowance(Allowance):
    """Counts the request of a key with limits, and the tokens and cost of the calls that reached an expert: `sent`,
    which grows.

    It reserves in two steps. Before the body is read it reserves the request and the `minimum` that any request uses,
    so that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed. At
    the end the reservation is replaced by the use, in one step.
    """

    __slots__ = ("_account", "_input", "_minimum", "_output", "_pricing", "_reservation", "_sent", "_size")

    def __init__(
        self, account: Account, pricing: Pricing, *, sent: Sequence[SentCall] = (), minimum: Amounts = ONE_REQUEST
    ) -> None:
        self._account = account
        self._pricing = pricing
        self._sent = sent
        self._minimum = minimum
        self._reservation: Reservation
        self._input = self._output = 0.0
        self._size = 0

    async def __aenter__(self) -> Allowance:
        self._reservation = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        self._size = max(size, chat.characters)  # stored answers that the request continues are not part of its body
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = self._pricing.amounts(chat, recipe, input_tokens=self._input, output_tokens=self._output)
        for counter in self._account.counters:
            if amounts[counter.unit] > counter.limit:
                raise counter.limit_error(self._account.key, amounts[counter.unit], wait=0.0)
        self._account.extend(self._reservation, amounts)

    async def __aexit__(self, *_: object) -> None:
        """Charges every call that reached an expert. What the server has not counted, because the client left or the
        call failed, costs the estimate: all input with what CoE added to the body, and the most output, or a token per
        event."""
        tokens = cost = 0.0
        for call in self._sent:
            usage = call.usage
            given: float | None = usage.input_tokens
            if given is None:
                given = self._input + max(0, call.size - self._size) / CHARACTERS_PER_TOKEN
            written: float | None = usage.output_tokens
            if written is None:
                written = max(self._output, usage.events)
            tokens += given + written
            cost += self._pricing.experts[call.expert].cost(given, written, usage.cached_tokens or 0)
        self._account.settle(self._reservation, Amounts(1, tokens, cost))

    def headers(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        for counter, remaining, reset in self._account.state():
            if (names := _HEADER_NAMES.get(counter.name)) is not None:
                values = b"%d" % counter.limit, b"%d" % max(0.0, remaining), b"%.3gs" % reset
                found += zip(names, values, strict=True)
        return found


AFFINITY_LOOKUP_SECONDS = 0.005
"""Time limit of a request that waits for its conversation's expert."""
_BEARER = b"bearer "
_KEY_HEADER = b"x-api-key"
"""Header of Anthropic's clients."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of the request's API key and its tenant, both None if no keys are declared. `cache` is False for a key
    that does not use the answer cache. `rule` limits the experts of the key's requests, None for all experts. `expires`
    is in Unix seconds, None for a key that does not expire."""

    key: str | None = None
    tenant: str | None = None
    cache: bool = True
    rule: ExpertRule | None = None
    expires: float | None = None


def _caller_of(key: ApiKey) -> Caller:
    expires = None if key.expires is None else key.expires.timestamp()
    return Caller(key.name, key.tenant or key.name, key.cache, rule_of(key), expires)


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of a request. Header names are in lower case, as ASGI passes them."""
    key = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            key = value[7:].strip()
            break
        if name == _KEY_HEADER:
            key = value
    if not key:
        raise Unauthorized("an API key is needed: send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'")
    if len(key) > MAX_KEY_BYTES:
        raise Unauthorized(f"this API key is not known; none is longer than {MAX_KEY_BYTES} bytes")
    return key


class Access:
    """The keys of a declaration, with the issued ones in force. Immutable: a reload makes a new one over the same
    limiter, which keeps the counts.

    Money is reserved by the price of the expert that a request pins, or by the highest prices for a routed request; for
    a recipe, by those of all its members. `routed` are the arms of recipes that routing may select. `host` is the
    address that the gateway listens on. `clock` returns Unix seconds.
    """

    def __init__(
        self,
        registry: Registry,
        limiter: Limiter,
        *,
        issued: IssuedKeys = (),
        routed: Collection[str] = (),
        host: str = "127.0.0.1",
        clock: Callable[[], float] = time.time,
    ) -> None:
        spec = access_with(registry, issued)
        prices = {expert.name: expert.prices for expert in registry.experts}
        recipes = {recipe.name: recipe for recipe in registry.declared_recipes}
        self.browsers = BrowserPolicy(spec.allowed_origins, spec.allowed_hosts, host=host)
        self.keys = spec.keys
        self._clock = clock
        self._known = {bytes.fromhex(key.sha256): (key.scopes, _caller_of(key)) for key in spec.keys}
        self._default_caller = None if spec.keys else Caller()
        self._accounts = limiter.accounts(spec.keys)
        self._arms = registry.arms
        self._pricing_of = partial(Pricing.of, prices, recipes, routed)
        self._pricing = dict[str, Pricing]()
        """The pricing of each key with limits that has sent a request."""
        self._minimum = Amounts(1, 1, min(one.input for one in prices.values()) / 1e6)

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller, whose key must have `scope` (None: any known key); without any keys, every caller may do
        everything. A key is found by its digest. Raises Unauthorized or Forbidden."""
        if self._default_caller is not None:
            return self._default_caller
        found = self._known.get(hashlib.sha256(_sent_key(headers)).digest())
        if found is None:
            raise Unauthorized("this API key is not known; request one from the operator of this service")
        scopes, caller = found
        if caller.expires is not None and caller.expires <= self._clock():
            expired = date_of(datetime.fromtimestamp(caller.expires, UTC))
            raise Unauthorized(f"the API key {caller.key!r} expired on {expired}; request a new one")
        if scope is not None and scope not in scopes:
            raise Forbidden(f"the API key {caller.key!r} lacks the scope {scope!r}; it has {', '.join(sorted(scopes))}")
        return caller

    def is_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Returns whether the caller's key has the admin scope, for all tenants."""
        try:
            self.identify(headers, "admin")
        except RequestError:
            return False
        return True

    def allowance(self, caller: Caller, sent: Sequence[SentCall]) -> Allowance:
        """The allowance of one request, which charges the calls `sent`; one that does nothing for a key without limits.
        Enter it before the body is read: it raises LimitReached where nothing remains."""
        if caller.key is None or (account := self._accounts.get(caller.key)) is None:
            return UNLIMITED
        if (pricing := self._pricing.get(caller.key)) is None:
            rule = caller.rule
            permitted = None if rule is None else [arm.name for arm in self._arms if not exclusion(rule, arm)]
            pricing = self._pricing[caller.key] = self._pricing_of(permitted)
        return LimitedAllowance(account, pricing, sent=sent, minimum=self._minimum)

    def request_allowance(self, caller: Caller) -> Allowance:
        """The allowance of a request that calls no expert: it counts as one request without tokens and money."""
        account = self._accounts.get(caller.key) if caller.key is not None else None
        return UNLIMITED if account is None else LimitedAllowance(account, Pricing())


@asynccontextmanager
async def open_affinity(counters: str) -> AsyncIterator[Affinity]:
    """The experts of conversations, shared with other gateways where `access.counters` names a Redis. Raises
    ConfigError for an invalid address."""
    if counters == FILE:
        yield Affinity()
        return
    store = RedisStore(counters, "with", setting="access.counters")
    outage = Outage("conversations", "; until Redis is back each gateway uses its own memory")
    async with SharedCache(store, outage, wait=AFFINITY_LOOKUP_SECONDS) as shared:
        yield Affinity(shared=shared)
