"""The allowance of one request of a key with limits: reserves an estimate before the call and charges the use after it.

An Allowance is an async context around a request. It also writes the rate-limit headers.
"""

from __future__ import annotations

from collections.abc import Sequence

from coe.core import Chat
from coe.usage import SentCall
from gateway.access.estimate import CHARACTERS_PER_TOKEN, Pricing, input_tokens, output_tokens
from gateway.access.limits import MINUTE, Account, Amounts, Reservation, limit_error

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

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        """Reserves what the answer to this chat of `size` bytes may use; `recipe` is that of RequestOptions. Raises
        LimitReached, or InvalidRequest for more than a limit ever allows."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The remaining amounts, as OpenAI's x-ratelimit headers."""
        return []


UNLIMITED = Allowance()


class RequestAllowance(Allowance):
    """Counts one request of a key with limits, without tokens and money."""

    __slots__ = ("_account", "_reservation")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._reservation: Reservation

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
    """Counts the request, and the tokens and cost of its calls that reached an expert: `sent`, which grows.

    It reserves in two steps. Before the body is read it reserves the request and the minimum that any request uses, so
    that a key without budget is refused early. `reserve` adds what the answer may use, once the body is parsed. At the
    end the reservation is replaced by the use, in one step.
    """

    __slots__ = ("_input", "_key", "_minimum", "_output", "_pricing", "_sent", "_size")

    def __init__(
        self, account: Account, key: str, sent: Sequence[SentCall], *, minimum: Amounts, pricing: Pricing
    ) -> None:
        super().__init__(account)
        self._key = key
        self._sent = sent
        self._minimum = minimum
        self._pricing = pricing
        self._input = self._output = 0.0
        self._size = 0

    async def __aenter__(self) -> Allowance:
        self._reservation = await self._account.reserve(self._minimum)
        return self

    async def reserve(self, chat: Chat, recipe: str = "", *, size: int = 0) -> None:
        self._size = max(size, chat.characters)  # stored answers that the request continues are not part of its body
        self._input, self._output = input_tokens(chat), output_tokens(chat)
        amounts = self._pricing.amounts(chat, recipe, input_tokens=self._input, output_tokens=self._output)
        for meter in self._account.meters:
            if amounts[meter.unit] > meter.limit:
                raise limit_error(self._key, meter, amounts[meter.unit], wait=0.0)
        self._account.extend(self._reservation, amounts)

    async def __aexit__(self, *_: object) -> None:
        """Charges every call that reached an expert."""
        tokens = cost = 0.0
        for call in self._sent:
            used = self._used(call)
            tokens, cost = tokens + used[0], cost + used[1]
        self._account.settle(self._reservation, Amounts(1, tokens, cost))

    def _used(self, call: SentCall) -> tuple[float, float]:
        """Tokens and dollars of one call. What the server has not counted, because the client left or the call failed,
        costs the estimate: all input with what CoE added to the body, and the most output, or a token per event."""
        usage = call.usage
        given: float | None = usage.input_tokens
        if given is None:
            given = self._input + max(0, call.size - self._size) / CHARACTERS_PER_TOKEN
        written: float | None = usage.output_tokens
        if written is None:
            written = max(self._output, usage.events)
        prices = self._pricing.experts[call.expert]
        return given + written, prices.cost(given, written, usage.cached_tokens or 0)


def _duration(seconds: float) -> bytes:
    """A duration in OpenAI's format: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    minutes, rest = divmod(seconds, 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%.3gs" % rest
