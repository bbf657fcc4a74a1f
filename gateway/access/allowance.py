"""The allowance of one request of a key with limits: reserves an estimate before the call and charges the use after it.

An Allowance is an async context around a request. It also writes the rate-limit headers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coe.core import Chat
from coe.registry import Prices
from coe.usage import Usage
from gateway.access.estimate import Pricing, input_tokens, output_tokens
from gateway.access.limits import MINUTE, Account, Amounts, limit_error

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

    __slots__ = ("_account", "_reservation")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._reservation: Any = None

    async def __aenter__(self) -> Allowance:
        self._reservation = await self._account.reserve(ONE_REQUEST)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._account.settle(self._reservation, ONE_REQUEST)

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
    that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed. At the
    end the reservation is replaced by the use, in one step.
    """

    __slots__ = ("_charged", "_input", "_key", "_minimum", "_output", "_pricing")

    def __init__(self, account: Account, key: str, *, minimum: Amounts, pricing: Pricing) -> None:
        super().__init__(account)
        self._key = key
        self._minimum = minimum
        self._pricing = pricing
        self._input = self._output = 0.0
        self._charged: tuple[Usage, Prices] | None = None

    async def __aenter__(self) -> Allowance:
        self._reservation = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat, recipe: str = "") -> None:
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = self._pricing.amounts(chat, recipe, input_tokens=self._input, output_tokens=self._output)
        for meter in self._account.meters:
            if amounts[meter.unit] > meter.limit:
                raise limit_error(self._key, meter, amounts[meter.unit], wait=0.0)
        await self._account.extend(self._reservation, amounts)

    def charge(self, usage: Usage, prices: Prices) -> None:
        self._charged = usage, prices

    async def __aexit__(self, *_: object) -> None:
        """Charges what was used. An answer without a token count, for example because the client disconnected, costs
        the estimate, or one token per event if more events came."""
        used = ONE_REQUEST if self._charged is None else self._used(*self._charged)
        self._account.settle(self._reservation, used)

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
