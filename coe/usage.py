"""Token counts of an answer; the calls of a recipe to its members, why it stopped, and the sum of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True, eq=False)
class Usage:
    """Token counts of one response, updated while it streams; None if the expert did not report them.

    `cached_tokens` are the input tokens that the server read from its prompt cache, a part of `input_tokens`, and
    `reasoning_tokens` those of reasoning, a part of `output_tokens`. `events` counts the events of a stream, each of
    which holds at least one token. `parts` are the members' names and usages for the answer of a recipe, and empty for
    one of an expert.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    events: int = 0
    parts: tuple[tuple[str, Usage], ...] = ()


@dataclass(slots=True, eq=False)
class SentCall:
    """One request that was written to an expert's server, which may bill it from then on.

    `expert` is its name, `size` the bytes of the body. `usage` grows while the answer arrives. A call
    whose tokens the server never counts costs an estimate.
    """

    expert: str
    size: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(slots=True, eq=False)
class MemberCall:
    """One call of a recipe to a member, updated while it runs.

    - `step`: number of the step, from 0.
    - `outcome`: `answered`, `unreadable` (a complete answer without a final answer that can be compared), `unverified`
      (returned without complete comparison), `cancelled`, or the cause of the failure. Of a judge: `graded` or
      `ungraded` (its reply has no grade).
    - `usage`: None until the member has begun to answer.
    - `ms`: duration in milliseconds.
    - `answer_class`: index of the first call with the same final answer; None without one.
    - `confidence`: probability that the answer is right, by the last comparison; None before one. Of a judge, the
      probability that the answer is right that it graded.
    - `accepted`: whether this answer was returned.
    - `drafts`: number of earlier answers in its request; 0 also where none was left or had room.
    """

    expert: str
    step: int
    outcome: str = "cancelled"
    usage: Usage | None = None
    ms: float = 0.0
    answer_class: int | None = None
    confidence: float | None = None
    accepted: bool = False
    drafts: int = 0


RecipeStop = Literal["", "accepted", "last_step", "stream_hold", "deadline", "unavailable", "failed", "cancelled"]
"""The reason why a recipe stopped; empty while it runs. `accepted`: its policy accepted an answer before the last step;
`last_step`: all steps were called, and compared or written. The next three return an unverified answer: the stream was
held as long as allowed, the deadline was near, or no member of the last step answered. `failed`: no member answered, or
not the last one of a chain or fuse."""


@dataclass(slots=True, eq=False)
class RecipeLog:
    """The calls of the recipes of one request in order, and the reason why the last recipe stopped."""

    recipe: str = ""
    calls: list[MemberCall] = field(default_factory=list)
    stop: RecipeStop = ""

    @property
    def accepted(self) -> MemberCall | None:
        """The call whose answer is returned; None without one."""
        return next((call for call in self.calls if call.accepted), None)

    @property
    def steps(self) -> int:
        """Number of steps that were begun."""
        return len({call.step for call in self.calls})


class RecipeUsage(Usage):
    """The sum over the calls of a recipe that have begun to answer. `refresh` computes it from their current counts.

    `fallback` is the name and usage of the expert that answers in place of a recipe that failed.
    """

    def __init__(self, log: RecipeLog, *fallback: tuple[str, Usage]) -> None:
        super().__init__()
        self._log = log
        self._fallback = fallback
        self.refresh()

    def refresh(self) -> None:
        calls = tuple((call.expert, call.usage) for call in self._log.calls if call.usage is not None)
        self.parts = (*calls, *self._fallback)
        usages = [usage for _, usage in self.parts]
        self.input_tokens = _sum_of_known([usage.input_tokens for usage in usages])
        self.cached_tokens = _sum_of_known([usage.cached_tokens for usage in usages])
        self.output_tokens = _sum_of_known([usage.output_tokens for usage in usages])
        self.events = sum(usage.events for usage in usages)


def _sum_of_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
