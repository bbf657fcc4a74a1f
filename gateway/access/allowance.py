"""What one request may use: an estimate reserved before the call, corrected after it, and shown in rate-limit headers.

An Allowance is an async context around a request. UNLIMITED is for keys without limits, RequestAllowance counts the
request alone, and TokenAllowance also its tokens and cost.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from coe.core import Chat, Usage
from coe.registry import Prices
from gateway.access.buckets import MINUTE
from gateway.access.estimate import input_tokens, output_tokens
from gateway.access.limits import Account, Amounts, limit_error

ONE_REQUEST = Amounts(1, 0, 0)
_HEADER_NAMES = {"requests_per_minute": b"requests", "tokens_per_minute": b"tokens"}

UsageOf = Callable[[], tuple[Usage, Prices] | None]
"""Called once at the end: tokens used and their prices; None if no expert answered."""


class Allowance:
    """An allowance without limits. `async with` holds what one request may use; entering raises LimitReached."""

    __slots__ = ()

    async def __aenter__(self) -> Allowance:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    async def reserve(self, chat: Chat) -> None:
        """Reserves what the answer to this chat may use. Raises LimitReached, or InvalidRequest for more than a limit
        ever allows."""

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

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._account.settle(self._reserved, ONE_REQUEST)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        for meter, remaining in zip(self._account.meters, self._account.remaining(), strict=True):
            if (what := _HEADER_NAMES.get(meter.name)) is not None:
                missing = max(0.0, meter.limit - remaining)
                found += [
                    (b"x-ratelimit-limit-" + what, b"%d" % meter.limit),
                    (b"x-ratelimit-remaining-" + what, b"%d" % max(0.0, remaining)),
                    (b"x-ratelimit-reset-" + what, _duration(missing * MINUTE / meter.limit)),
                ]
        return found


class TokenAllowance(RequestAllowance):
    """Counts the request, tokens and cost of an expert's answer.

    It reserves in two steps. Before the body is read it reserves the request and the minimum that any request uses, so
    that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed.
    """

    __slots__ = ("_input", "_key", "_minimum", "_output", "_prices_of", "_reserved_for_answer", "_usage_of")

    def __init__(
        self, account: Account, key: str, *, minimum: Amounts, prices_of: Callable[[str], Prices], usage_of: UsageOf
    ) -> None:
        super().__init__(account)
        self._key = key
        self._minimum = minimum
        self._prices_of = prices_of
        self._input = self._output = 0.0
        self._reserved_for_answer: Any = None
        self._usage_of: UsageOf | None = usage_of
        """None after the call: it refers to the request, which refers to this, and such cycles keep large bodies alive.
        """

    async def __aenter__(self) -> Allowance:
        self._reserved = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat) -> None:
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = _amounts(self._input, self._output, self._prices_of(chat.model))
        for meter in self._account.meters:
            if amounts[meter.unit] > meter.limit:
                raise limit_error(self._key, meter, amounts[meter.unit], wait=0.0)
        self._reserved_for_answer = await self._account.reserve(_beyond(amounts, self._minimum))

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Charges what was used. An answer without a token count, for example because the client disconnected, costs
        the estimate, or one token per event if more events came."""
        assert self._usage_of is not None
        usage_of, self._usage_of = self._usage_of(), None
        if self._reserved_for_answer is None:
            self._account.settle(self._reserved, ONE_REQUEST)
            return
        used = ONE_REQUEST if usage_of is None else self._used(*usage_of)
        self._account.settle(self._reserved, self._minimum)
        self._account.settle(self._reserved_for_answer, _beyond(used, self._minimum))

    def _used(self, usage: Usage, prices: Prices) -> Amounts:
        known_input, known_output = usage.input_tokens, usage.output_tokens
        return _amounts(
            self._input if known_input is None else known_input,
            max(self._output, usage.events) if known_output is None else known_output,
            prices,
        )


def _beyond(use: Amounts, minimum: Amounts) -> Amounts:
    """What is used beyond `minimum`; negative if less was used."""
    return Amounts(use.requests - minimum.requests, use.tokens - minimum.tokens, use.dollars - minimum.dollars)


def _amounts(input_tokens: float, output_tokens: float, prices: Prices) -> Amounts:
    dollars = (input_tokens * prices.input + output_tokens * prices.output) / 1e6
    return Amounts(1, input_tokens + output_tokens, dollars)


def _duration(seconds: float) -> bytes:
    """A duration in OpenAI's format: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    minutes, rest = divmod(seconds, 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%.3gs" % rest
