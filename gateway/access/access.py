"""The `access` section of experts.yaml in use: identifies callers, and gives each request its allowance.

`open_limiter` opens the counters that the section names, `check_counters` validates them, and `access_of` builds an
Access over them. An Allowance is an async context around a request: it reserves an estimate before the call, corrects
it afterwards, and writes the rate-limit headers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from coe.core import Chat, ExpertRule, Scope
from coe.errors import ConfigError, Forbidden, RequestError
from coe.registry import AccessSpec, ApiKey, KeyLimits, Prices, RecipeSpec, Registry
from coe.registry.recipes import cap_in_force
from coe.routing.eligibility import exclusion
from coe.runtime.api_keys import Caller, KeyRing
from coe.runtime.issued_keys import IssuedKeys, access_with
from coe.supervision import TaskFailed, ignore_failure
from coe.usage import Usage
from gateway.access.browsers import BrowserPolicy
from gateway.access.estimate import input_tokens, output_tokens
from gateway.access.limits import MEMORY, MINUTE, Account, Amounts, Limiter, limit_error, meters_of
from gateway.access.local import KEY_USAGE_FILE, DurableLimiter, MemoryLimiter
from gateway.access.pricing import Pricing
from gateway.access.redis import RedisLimiter, limits_client

ONE_REQUEST = Amounts(1, 0, 0)
_HEADER_NAMES = {
    f"{unit}_per_minute": tuple(f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset"))
    for unit in ("requests", "tokens")
}
"""The names of the headers about the limit, the remaining amount and the reset of each meter that has them."""


class Allowance:
    """Reserves the amounts that one request may use on entry, and charges the used ones on exit, as an async context.

    This base class has no limits and does nothing. Entering a limited allowance may raise LimitReached.
    """

    __slots__ = ()

    async def __aenter__(self) -> Allowance:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def reserve(self, chat: Chat, recipe: str = "") -> None:
        """Reserves what the answer to this chat may use; `recipe` is that of RequestOptions. Raises LimitReached, or
        InvalidRequest for more than a limit ever allows."""

    def charge(self, usage: Usage, prices: Prices) -> None:
        """Set the usage and prices that the exit of the context charges, because an expert answers. Without a call of
        this method no tokens are charged. Each part of a recipe's usage is charged by its member's own prices."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The remaining amounts, as OpenAI's x-ratelimit headers."""
        return []


UNLIMITED = Allowance()


class RequestAllowance(Allowance):
    """Counts one request of a key with limits, without tokens and money."""

    __slots__ = ("_account", "_reserved")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._reserved: Any = None

    async def __aenter__(self) -> Allowance:
        self._reserved = await self._account.reserve(ONE_REQUEST)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._account.settle(self._reserved, ONE_REQUEST)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        for meter, remaining in zip(self._account.meters, self._account.remaining(), strict=True):
            if (names := _HEADER_NAMES.get(meter.name)) is not None:
                missing = max(0.0, meter.limit - remaining)
                found += [
                    (names[0], b"%d" % meter.limit),
                    (names[1], b"%d" % max(0.0, remaining)),
                    (names[2], _duration(missing * MINUTE / meter.limit)),
                ]
        return found


class TokenAllowance(RequestAllowance):
    """Counts the request, tokens and cost of an expert's answer.

    It reserves in two steps. Before the body is read it reserves the request and the minimum that any request uses, so
    that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed.
    """

    __slots__ = ("_charged", "_input", "_key", "_minimum", "_output", "_pricing", "_reserved_for_answer")

    def __init__(self, account: Account, key: str, *, minimum: Amounts, pricing: Pricing) -> None:
        super().__init__(account)
        self._key = key
        self._minimum = minimum
        self._pricing = pricing
        self._input = self._output = 0.0
        self._reserved_for_answer: Any = None
        self._charged: tuple[Usage, Prices] | None = None

    async def __aenter__(self) -> Allowance:
        self._reserved = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat, recipe: str = "") -> None:
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = self._pricing.amounts(chat, recipe, input_tokens=self._input, output_tokens=self._output)
        for meter in self._account.meters:
            if amounts[meter.unit] > meter.limit:
                raise limit_error(self._key, meter, amounts[meter.unit], wait=0.0)
        self._reserved_for_answer = await self._account.reserve(_beyond(amounts, self._minimum))

    def charge(self, usage: Usage, prices: Prices) -> None:
        self._charged = usage, prices

    async def __aexit__(self, *_: object) -> None:
        """Charges what was used. An answer without a token count, for example because the client disconnected, costs
        the estimate, or one token per event if more events came."""
        if self._reserved_for_answer is None:
            self._account.settle(self._reserved, ONE_REQUEST)
            return
        used = ONE_REQUEST if self._charged is None else self._used(*self._charged)
        self._account.settle(self._reserved, self._minimum)
        self._account.settle(self._reserved_for_answer, _beyond(used, self._minimum))

    def _used(self, usage: Usage, prices: Prices) -> Amounts:
        if usage.parts:
            return _sum([self._used(part, self._pricing.experts[name]) for name, part in usage.parts])
        known_input, known_output = usage.input_tokens, usage.output_tokens
        most = self._output if usage.max_tokens is None else min(self._output, usage.max_tokens)
        return _amounts(
            self._input if known_input is None else known_input,
            max(most, usage.events) if known_output is None else known_output,
            prices,
            usage.cached_tokens or 0,
        )


def _beyond(use: Amounts, minimum: Amounts) -> Amounts:
    """The use beyond `minimum`; negative if less was used."""
    return Amounts(use.requests - minimum.requests, use.tokens - minimum.tokens, use.dollars - minimum.dollars)


def _amounts(input_tokens: float, output_tokens: float, prices: Prices, cached_tokens: float = 0.0) -> Amounts:
    return Amounts(1, input_tokens + output_tokens, prices.cost(input_tokens, output_tokens, cached_tokens))


def _sum(calls: Iterable[Amounts]) -> Amounts:
    """The total use of the calls of one request."""
    amounts = list(calls)
    if len(amounts) == 1:
        return amounts[0]
    return Amounts(1, sum(one.tokens for one in amounts), sum(one.dollars for one in amounts))


def _duration(seconds: float) -> bytes:
    """A duration in OpenAI's format: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    minutes, rest = divmod(seconds, 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%.3gs" % rest


class Access:
    """Immutable: a reload makes a new one over the same limiter, which keeps the counts.

    `prices` are the experts' prices by name. Money is reserved by the price of the expert that a request pins, or by
    the highest prices for a routed request; for a recipe, by those of all its members. `recipes` has the
    declaration by recipe and arm, `routed` the arms that routing may select. `permitted` returns the experts and arms
    of a key's rule; it runs at the key's first request, since keys may be many. `host` is the address that the gateway
    listens on. `keys` are those that count, declared and issued.
    """

    def __init__(
        self,
        spec: AccessSpec,
        limiter: Limiter | None = None,
        *,
        prices: Mapping[str, Prices] | None = None,
        recipes: Mapping[str, RecipeSpec] | None = None,
        routed: Collection[str] = (),
        permitted: Callable[[ExpertRule], Collection[str]] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.browsers = BrowserPolicy(spec.allowed_origins, spec.allowed_hosts, host=host)
        self.keys = spec.keys
        self._keys = KeyRing(spec.keys)
        self._accounts = (limiter or MemoryLimiter()).accounts(spec.keys)
        self._pricing_of = partial(Pricing.of, prices or {}, recipes or {}, routed)
        self._pricing = self._pricing_of()
        self._permitted = permitted
        self._pricing_by_key = dict[str, Pricing]()
        self._minimum = Amounts(1, 1, min((one.input for one in (prices or {}).values()), default=0.0) / 1e6)

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: Scope | None) -> Caller:
        """The caller, whose key must have `scope` (None: any known key). Raises Unauthorized or Forbidden."""
        return self._keys.identify(headers, scope)

    def identify_unrestricted(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """The caller's key, if it has all scopes and no restriction. Raises Unauthorized or Forbidden, also where no
        keys are declared."""
        name = self._keys.identify(headers, "admin").key
        key = next((key for key in self.keys if key.name == name), None)
        what = "this needs an API key with all scopes, and without limits, experts, only_local and expires"
        if key is None:
            scopes = " ".join(f"--scope {scope}" for scope in get_args(Scope))
            raise Forbidden(f"{what}. No such key is declared; make one with `coe key admin {scopes}`")
        restricted = key.limits != KeyLimits() or key.experts is not None or key.only_local or key.expires is not None
        if restricted or key.scopes < frozenset(get_args(Scope)):
            raise Forbidden(f"{what}; {key.name!r} is restricted")
        return key

    def is_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Returns whether the caller's key has the admin scope, for all tenants."""
        try:
            self._keys.identify(headers, "admin")
        except RequestError:
            return False
        return True

    def allowance(self, caller: Caller) -> Allowance:
        """The allowance of one request; one that does nothing for a key without limits. Enter it before the body is
        read: it raises LimitReached where nothing remains."""
        if caller.key is None or (account := self._accounts.get(caller.key)) is None:
            return UNLIMITED
        pricing = self._pricing_for(caller.key, caller.rule)
        return TokenAllowance(account, caller.key, minimum=self._minimum, pricing=pricing)

    def _pricing_for(self, key: str, rule: ExpertRule | None) -> Pricing:
        if rule is None or self._permitted is None:
            return self._pricing
        if (found := self._pricing_by_key.get(key)) is None:
            found = self._pricing_by_key[key] = self._pricing_of(self._permitted(rule))
        return found

    def request_allowance(self, caller: Caller) -> Allowance:
        """The allowance of a request that calls no expert: it counts as one request without tokens and money."""
        account = self._accounts.get(caller.key) if caller.key is not None else None
        return UNLIMITED if account is None else RequestAllowance(account)


def access_of(
    registry: Registry,
    limiter: Limiter,
    *,
    issued: IssuedKeys = (),
    routed: Collection[str] = (),
    host: str = "127.0.0.1",
) -> Access:
    """The Access of a declaration and the issued keys over `limiter`. `routed` are the arms of recipes that routing may
    select."""
    spec = access_with(registry, issued)
    prices = {expert.name: expert.prices for expert in registry.single_arms}
    recipes = {recipe.name: _with_caps_in_force(recipe, registry) for recipe in registry.declared_recipes}
    recipes |= {arm.name: recipes[arm.recipe] for arm in registry.recipe_arms}

    def permitted(rule: ExpertRule) -> Collection[str]:
        return [arm.name for arm in registry.arms if not exclusion(rule, arm)]

    return Access(spec, limiter, prices=prices, recipes=recipes, routed=routed, permitted=permitted, host=host)


def _with_caps_in_force(recipe: RecipeSpec, registry: Registry) -> RecipeSpec:
    """The recipe with the caps that its members' calls have."""
    caps = {name: cap_in_force(cap, registry.expert(name)) for name, cap in recipe.max_tokens.items()}
    return recipe.model_copy(update={"max_tokens": {name: int(cap) for name, cap in caps.items() if isfinite(cap)}})


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
            f"access.counters: {workers} worker processes would each count the limits of API keys for themselves; "
            "write counters: redis://HOST:6379/0, or set COE_WORKERS=1"
        )
