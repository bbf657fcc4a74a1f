"""A memory for answers in place of the gateway's."""

from __future__ import annotations

import math

from coe.errors import AnswerMemoryFull


class Memory:
    """`Call.memory` of `limit` bytes; `held` and the `peak` of it are bytes."""

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.held = self.peak = 0

    def __call__(self, count: int) -> None:
        if self.held + count > self.limit:
            raise AnswerMemoryFull("no memory", expert="")
        self.held += count
        self.peak = max(self.peak, self.held)
