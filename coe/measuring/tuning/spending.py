"""Bounds what a run may spend: each call reserves its worst price before it starts, and is settled by its usage.

The worst price of a call has a token for each byte of its messages and declared fields, and as many output tokens as
the request allows: the declared `max_tokens` or `max_completion_tokens` of `parameters`, or else a limit that is sent
with each call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from coe.core import Call, Chunks, Expert, Health, Reply
from coe.errors import ExpertError, ExpertRejected
from coe.experts.live_check import GREETING, MAX_ANSWER_TOKENS
from coe.measuring.scoring_run import StopScoring
from coe.registry import ExpertSpec
from coe.terminal import dollars, print_error

MESSAGE_TOKENS = 16
"""Tokens that a chat template adds to a message at most."""
OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
LEAST_OUTPUT_TOKENS = 1024
"""Sent limits are not lowered below this where a server rejects them, or where the prompt may fill the context."""


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
    return max(_declared_limits(spec), default=spec.context_length)


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
    calls: int = 0
    aside: dict[asyncio.Task[Any] | None, float] = field(default_factory=dict, init=False)
    """US dollars that a task keeps for its later calls."""
    is_short: bool = field(default=False, init=False)
    """True once a call of the current round was refused because of the limit in dollars."""

    @property
    def is_over(self) -> bool:
        """True after the deadline."""
        return self.deadline is not None and self.clock() >= self.deadline

    @property
    def available(self) -> float:
        """US dollars that calls can still reserve."""
        kept = self.reserved + sum(self.aside.values())
        return math.inf if self.dollars is None else self.dollars - self.spent - kept

    @contextmanager
    def set_aside(self, price: float) -> Iterator[None]:
        """Keep US dollars for later calls of this task, so that other calls cannot reserve them."""
        task = asyncio.current_task()
        self.aside[task] = price
        try:
            yield
        finally:
            del self.aside[task]

    def reserve(self, price: float, *, from_aside: bool = False) -> None:
        """Reserve the worst price of a call, with what this task set aside if `from_aside`. Raises StopScoring."""
        if self.is_over:
            raise StopScoring("the time is over")
        task = asyncio.current_task() if from_aside else None
        kept = self.aside.get(task, 0.0)
        if price > self.available + kept:
            self.is_short = True
            raise StopScoring("the budget is spent")
        if task in self.aside:
            self.aside[task] = max(kept - price, 0.0)
        self.reserved += price
        self.calls += 1

    def settle(self, reserved: float, actual: float) -> None:
        """Replace a reservation by the actual price."""
        self.reserved -= reserved
        self.spent += actual


class MeteredExpert:
    """An expert whose calls are bounded by `spending`. A call of unknown usage counts with its worst price.

    Under a limit in dollars, calls without a declared output limit get one. It is lowered while the server rejects it.
    After a call that is billed above its worst price, `is_stopped` is true and no further call starts. A judge spends
    what is set aside for it.
    """

    def __init__(
        self,
        expert: Expert,
        spec: ExpertSpec,
        spending: Spending,
        *,
        report: Callable[[str], None] = print_error,
        is_judge: bool = False,
    ) -> None:
        self.name, self.is_stopped, self._is_judge = expert.name, False, is_judge
        self._expert, self._spec, self._spending, self._report = expert, spec, spending, report
        self._limit_name, self._limit = "max_tokens", max_output_tokens(spec)

    @property
    def health(self) -> Health:
        return self._expert.health

    def worst_price(self, messages: Sequence[Mapping[str, Any]]) -> float:
        """Return the highest price of a call, in US dollars."""
        return worst_price(self._spec, messages, limit=next(iter(self._sent_limit(messages).values()), None))

    async def stream(self, call: Call) -> Reply:
        """Call the expert. Raises StopScoring if the limits do not allow it, and what the expert raises."""
        while True:
            limit = self._sent_limit(call.fields["messages"])
            try:
                return await self._reserved(replace(call, fields={**call.fields, **limit}))
            except ExpertRejected as error:
                if not self._lowered(limit, error):
                    raise

    async def _reserved(self, call: Call) -> Reply:
        if self.is_stopped:
            raise StopScoring("its server bills more than its calls allow")
        worst = self.worst_price(call.fields["messages"])
        self._spending.reserve(worst, from_aside=self._is_judge)
        try:
            reply = await self._expert.stream(call)
        except BaseException as error:
            is_free = isinstance(error, ExpertError) and not error.may_be_billed
            self._spending.settle(worst, 0.0 if is_free else worst)
            raise
        return _MeteredReply(reply, lambda: self._settle(worst, reply))

    def _sent_limit(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Return the field that bounds the answer; empty if the declaration has one, or nothing bounds the dollars."""
        if self._spending.dollars is None or _declared_limits(self._spec):
            return {}
        left = self._spec.context_length - _input_tokens(self._spec, messages)  # some servers reject a higher limit
        return {self._limit_name: min(self._limit, max(left, LEAST_OUTPUT_TOKENS))}

    def _lowered(self, sent: Mapping[str, int], error: ExpertRejected) -> bool:
        """Change what the server rejects: the field's name (OpenAI's newer models), or else its value. Returns False
        if it rejects something else."""
        for name, limit in sent.items():
            if error.param != name and name not in str(error):
                return False
            if name == "max_tokens" and "max_completion_tokens" in str(error):
                self._limit_name = "max_completion_tokens"
            elif limit <= LEAST_OUTPUT_TOKENS:
                return False
            else:
                self._limit = min(self._limit, max(limit // 2, LEAST_OUTPUT_TOKENS))
            return True
        return False

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

    async def aclose(self) -> None:
        await self._expert.aclose()


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
