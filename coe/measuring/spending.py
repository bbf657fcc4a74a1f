"""Bounds what a run may spend: each call reserves its worst price before it starts, and is settled by its usage.

The worst price of a call has a token for each byte of its messages and declared fields, and as many output tokens as
the request allows: the declared `max_tokens` or `max_completion_tokens` of `parameters`, or else MAX_OUTPUT_TOKENS,
which is sent with each call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from coe.core import Call, Chunks, Expert, Health, Reply
from coe.errors import ExpertError
from coe.experts.live_check import GREETING, MAX_ANSWER_TOKENS
from coe.measuring.scoring_run import StopScoring
from coe.registry import ExpertSpec
from coe.terminal import dollars, print_error

MESSAGE_TOKENS = 16
"""Tokens that a chat template adds to a message at most."""
OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
MAX_OUTPUT_TOKENS = 16_384
"""Limit that is sent where none is declared and the run has one in dollars."""
LEAST_OUTPUT_TOKENS = 1024
"""The sent limit is no lower, even where the prompt may fill the context."""


def worst_price(spec: ExpertSpec, messages: Sequence[Mapping[str, Any]], *, limit: int | None = None) -> float:
    """Return the highest price of one chat completion in US dollars; `limit` is that of its output if one is sent."""
    answers = spec.parameters.get("n")
    written = max_output_tokens(spec) if limit is None else limit
    return spec.prices.cost(_input_tokens(spec, messages), written * (answers if isinstance(answers, int) else 1))


def _input_tokens(spec: ExpertSpec, messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the most input tokens of a call: one for each byte, and those of the chat template.

    Declared fields that are more than a number are input too, such as `tools` and `response_format`.
    """
    texts = [str(message["content"]) for message in messages] + [spec.system_prompt or ""]
    fields = {name: value for name, value in spec.parameters.items() if not isinstance(value, (int, float))}
    size = sum(len(text.encode("utf-8", "replace")) for text in texts) + (len(orjson.dumps(fields)) if fields else 0)
    return size + MESSAGE_TOKENS * len(texts)


def check_price(spec: ExpertSpec) -> float:
    """Return the highest price of a live check of an expert's servers, in US dollars."""
    return worst_price(spec, GREETING, limit=MAX_ANSWER_TOKENS) * max(len(spec.addresses), 1)


def max_output_tokens(spec: ExpertSpec) -> int:
    """Return the most output tokens of one answer that the declaration allows."""
    return max(_declared_limits(spec), default=min(spec.context_length, MAX_OUTPUT_TOKENS))


def _declared_limits(spec: ExpertSpec) -> list[int]:
    return [spec.parameters[name] for name in OUTPUT_LIMITS if isinstance(spec.parameters.get(name), int)]


@dataclass(slots=True)
class Spending:
    """US dollars of a run, and its limits: `dollars`, and `deadline` by the monotonic clock; None for no limit.

    No call starts whose worst price, with what is spent and reserved, is above the limit, and none after the deadline.
    """

    dollars: float | None = None
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic
    spent: float = 0.0
    reserved: float = 0.0
    is_short: bool = field(default=False, init=False)
    """True once a call of the current round was refused because of the limit in dollars."""

    @property
    def is_over(self) -> bool:
        """True after the deadline."""
        return self.deadline is not None and self.clock() >= self.deadline

    @property
    def available(self) -> float:
        """US dollars that calls can still reserve."""
        return math.inf if self.dollars is None else self.dollars - self.spent - self.reserved

    def reserve(self, price: float) -> None:
        """Reserve the worst price of a call. Raises StopScoring if the limits do not allow it."""
        if self.is_over:
            raise StopScoring("the time is over")
        if price > self.available:
            self.is_short = True
            raise StopScoring("the budget is spent")
        self.reserved += price

    def settle(self, reserved: float, actual: float) -> None:
        """Replace a reservation by the actual price."""
        self.reserved -= reserved
        self.spent += actual


class MeteredExpert:
    """An expert whose calls are bounded by `spending`. A call of unknown usage counts with its worst price.

    Under a limit in dollars, calls without a declared output limit get one. After a call that is billed above its worst
    price, `is_stopped` is true and no further call starts.
    """

    def __init__(
        self,
        expert: Expert,
        spec: ExpertSpec,
        spending: Spending,
        *,
        report: Callable[[str], None] = print_error,
    ) -> None:
        self.name, self.is_stopped = expert.name, False
        self._expert, self._spec, self._spending, self._report = expert, spec, spending, report

    @property
    def health(self) -> Health:
        return self._expert.health

    def worst_price(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """Return the highest price of a call, in US dollars."""
        return worst_price(self._spec, messages, limit=self._sent_limit(messages))

    async def stream(self, call: Call) -> Reply:
        """Call the expert. Raises StopScoring if the limits do not allow it, and what the expert raises."""
        if self.is_stopped:
            raise StopScoring("its server bills more than its calls allow")
        messages = call.fields["messages"]
        worst, limit = self.worst_price(messages), self._sent_limit(messages)
        if limit is not None:
            call = replace(call, fields={"max_tokens": limit, **call.fields}, optional=call.optional | {"max_tokens"})
        self._spending.reserve(worst)
        try:
            reply = await self._expert.stream(call)
        except BaseException as error:
            is_free = isinstance(error, ExpertError) and not error.may_be_billed
            self._spending.settle(worst, 0.0 if is_free else worst)
            raise
        return _MeteredReply(reply, lambda: self._settle(worst, reply))

    def _sent_limit(self, messages: Sequence[Mapping[str, Any]]) -> int | None:
        """Return the limit to send; None if the declaration has one, or nothing bounds the dollars."""
        if self._spending.dollars is None or _declared_limits(self._spec):
            return None
        left = self._spec.context_length - _input_tokens(self._spec, messages)  # some servers reject a higher limit
        return min(max_output_tokens(self._spec), max(left, LEAST_OUTPUT_TOKENS))

    def _settle(self, worst: float, reply: Reply) -> None:
        given, written = reply.usage.input_tokens, reply.usage.output_tokens
        actual = worst if given is None or written is None else self._spec.prices.cost(given, written)
        self._spending.settle(worst, actual)
        if self._spending.dollars is not None and actual > worst * (1 + 1e-9) and not self.is_stopped:
            self.is_stopped = True
            self._report(
                f"{self.name}: a call that may cost at most {dollars(worst)} was billed {dollars(actual)}: its server "
                f"exceeds the output limit ({given} input and {written} output tokens); it gets no more calls in this "
                "run"
            )


class _MeteredReply:
    """A reply that settles its reservation once, when it is closed."""

    def __init__(self, reply: Reply, settle: Callable[[], None]) -> None:
        self.media_type, self.usage = reply.media_type, reply.usage
        self._reply, self._settle, self._is_settled = reply, settle, False

    def chunks(self) -> Chunks:
        return self._reply.chunks()

    async def aclose(self) -> None:
        try:
            await self._reply.aclose()
        finally:
            if not self._is_settled:
                self._is_settled = True
                self._settle()
