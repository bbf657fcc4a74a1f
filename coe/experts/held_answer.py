"""Answers that are held whole, and the count of their bytes, so that all answers of a process have bounded memory.

An answer without a stream is held from its first byte until the client has it, a long event until it is complete and
sent. The holder of such bytes has a `HeldAnswer`, which reports to the memory of its call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from coe.core import AnswerMemory
from coe.usage import Usage

SMALL_ANSWER = 2**16
"""Bytes of an answer that are not counted; the permits bound them."""


class HeldAnswer:
    """The bytes that one holder has."""

    def __init__(self, memory: AnswerMemory | None) -> None:
        self._memory = memory
        self._counted = 0

    def resize(self, size: int) -> None:
        """Hold `size` bytes in all, of which up to SMALL_ANSWER are not counted. Raises AnswerMemoryFull."""
        counted = size if size > SMALL_ANSWER else 0
        if counted != self._counted and self._memory is not None:
            self._memory(counted - self._counted)
            self._counted = counted


class WholeReply:
    """A reply with one JSON document, which `held` counts until the reply is closed."""

    media_type = "application/json"

    def __init__(self, body: bytes, usage: Usage, held: HeldAnswer) -> None:
        held.resize(len(body))
        self.usage = usage
        self._body, self._held = body, held

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    async def aclose(self) -> None:
        self._held.resize(0)
