"""Scripted experts that advance by event loop ticks, and count open replies and running calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from coe.core import Call, Expert, Health, Reply
from coe.errors import ExpertRejected
from coe.routing.attempts import Attempts, call_experts
from coe.usage import Usage

CALL = Call({}, True, 5, 5, conversation=b"talk")


class HeldReply:
    media_type = "text/event-stream"

    def __init__(self, open_replies: list[HeldReply]) -> None:
        self.usage = Usage()
        self._open = open_replies
        open_replies.append(self)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"chunk"

    async def aclose(self) -> None:
        self._open.remove(self)


@dataclass
class SteppedExpert:
    """An expert with a script of one entry per call: ticks to wait before the reply, an error, (ticks, error), or
    "hang". The last entry repeats."""

    name: str
    script: list[Any] = field(default_factory=lambda: [0])
    health: Health = field(default_factory=Health)
    open_replies: list[HeldReply] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0

    async def stream(self, call: Call) -> HeldReply:
        self.calls.append(call)
        step = self.script[min(len(self.calls), len(self.script)) - 1]
        self.running += 1
        try:
            if isinstance(step, tuple):
                await ticks(step[0])
                step = step[1]
            if isinstance(step, BaseException):
                raise step
            await (asyncio.Event().wait() if step == "hang" else ticks(step))
            return HeldReply(self.open_replies)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def aclose(self) -> None: ...


async def ticks(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def failed(kind: type[Any], **more: Any) -> Any:
    error = kind("no", expert="x", **({"status": 400} if kind is ExpertRejected else {}))
    for name, value in more.items():
        setattr(error, name, value)
    return error


@dataclass
class CallResult:
    """The accepted reply, its expert, and the number of attempts."""

    expert: str
    reply: Reply
    attempts: int


async def call_all(
    *experts: Expert,
    call: Call = CALL,
    max_attempts: int = 3,
    within: float = 60,
    hedge: bool = False,
    attempts: Attempts | None = None,
) -> CallResult:
    deadline, attempts = asyncio.get_running_loop().time() + within, attempts or Attempts()
    expert, reply = await call_experts(
        call, experts, max_attempts=max_attempts, deadline=deadline, attempts=attempts, hedge=hedge
    )
    return CallResult(expert, reply, attempts.count)


SLOW = Health(ttft_p95=0.0)
