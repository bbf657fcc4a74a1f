"""What one request may use: estimated before the call, corrected after it, told in the answer's headers."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from coe.core import Chat, Usage
from coe.registry import Prices
from gateway.access.buckets import MINUTE
from gateway.access.estimate import input_tokens, output_tokens
from gateway.access.limits import Account, Use, refusal

REQUEST = Use(1, 0, 0)
_SHOWN = {"requests_per_minute": b"requests", "tokens_per_minute": b"tokens"}

Spent = Callable[[], tuple[Usage, Prices] | None]
"""Tells at the end what was used and by which prices; None where no expert answered."""


class Allowance:
    """`async with` holds what one request may use; entering raises LimitReached. This one is without limits."""

    __slots__ = ()

    async def __aenter__(self) -> Allowance:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...

    async def reserve(self, chat: Chat) -> None:
        """Reserve what the answer to this chat may use. Raises LimitReached, or InvalidRequest for more than a limit
        ever allows."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, the way OpenAI tells it."""
        return []


FREE = Allowance()


class Counted(Allowance):
    """Of a key that has limits, for what asks no expert: one request, without tokens and without money."""

    __slots__ = ("_account", "_taken")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._taken: Any = None

    async def __aenter__(self) -> Allowance:
        self._taken = await self._account.take(REQUEST)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._account.settle(self._taken, REQUEST)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        for meter, left in zip(self._account.meters, self._account.left(), strict=True):
            if (what := _SHOWN.get(meter.name)) is not None:
                missing = max(0.0, meter.limit - left)
                found += [
                    (b"x-ratelimit-limit-" + what, b"%d" % meter.limit),
                    (b"x-ratelimit-remaining-" + what, b"%d" % max(0.0, left)),
                    (b"x-ratelimit-reset-" + what, _duration(missing * MINUTE / meter.limit)),
                ]
        return found


class Metered(Counted):
    """What an expert's answer uses of a key with limits, reserved in two steps. Before the body is read it is the
    request and the least that any request uses, so that a key with nothing left is refused. Once the body is parsed it
    is what the answer may use."""

    __slots__ = ("_input", "_key", "_least", "_output", "_prices_of", "_rest", "_spent")

    def __init__(
        self, account: Account, key: str, *, least: Use, prices_of: Callable[[str], Prices], spent: Spent
    ) -> None:
        super().__init__(account)
        self._key = key
        self._least = least
        self._prices_of = prices_of
        self._input = self._output = 0.0
        self._rest: Any = None
        self._spent: Spent | None = spent
        """None once it was asked: it holds the request, which holds this, and such circles keep large bodies."""

    async def __aenter__(self) -> Allowance:
        self._taken = await self._account.take(self._least)
        return self

    async def reserve(self, chat: Chat) -> None:
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        whole = _use(self._input, self._output, self._prices_of(chat.model))
        for meter in self._account.meters:
            if whole[meter.unit] > meter.limit:
                raise refusal(self._key, meter, whole[meter.unit], wait=0.0)
        self._rest = await self._account.take(_less(whole, self._least))

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Charge what was used. An answer whose tokens nobody counted, as when the client left, costs the estimate,
        or a token for each event where more of them came."""
        assert self._spent is not None
        spent, self._spent = self._spent(), None
        if self._rest is None:
            self._account.settle(self._taken, REQUEST)
            return
        used = REQUEST if spent is None else self._used(*spent)
        self._account.settle(self._taken, self._least)
        self._account.settle(self._rest, _less(used, self._least))

    def _used(self, usage: Usage, prices: Prices) -> Use:
        known_input, known_output = usage.input_tokens, usage.output_tokens
        return _use(
            self._input if known_input is None else known_input,
            max(self._output, usage.events) if known_output is None else known_output,
            prices,
        )


def _less(use: Use, least: Use) -> Use:
    """What is used beyond `least`, which is negative where less was used."""
    return Use(use.requests - least.requests, use.tokens - least.tokens, use.dollars - least.dollars)


def _use(input_tokens: float, output_tokens: float, prices: Prices) -> Use:
    dollars = (input_tokens * prices.input + output_tokens * prices.output) / 1e6
    return Use(1, input_tokens + output_tokens, dollars)


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    minutes, rest = divmod(seconds, 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%.3gs" % rest
