"""The allowance of one request of a key with limits: reserves an estimate before the call and charges the use after it.

An Allowance is an async context around a request. It also writes the rate-limit headers.
"""

from __future__ import annotations

from collections.abc import Sequence

from coe.core import Chat
from coe.usage import SentCall
from gateway.access.estimate import CHARACTERS_PER_TOKEN, Pricing, input_tokens, output_tokens
from gateway.access.limits import Account, Amounts, Reservation

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
