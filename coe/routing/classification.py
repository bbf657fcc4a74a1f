"""From a text to its category posterior: a fast prediction, and an encoder pass only if it may change the decision.

Encoder passes run in threads and compete with the event loop for processors. `LoadShedding` limits how many run at
once, and skips them for a while after a slow one, which indicates busy processors.

From a conversation to the text that is routed: last user message first, older ones shortened, bounded in length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import replace

from coe.core import LOAD_SHED, Chat, Prediction, Router
from coe.routing.overlay import Overlays

MAX_ENCODER_PASSES = 4
"""Concurrent encoder passes. With two threads, the last one waits for one other."""
SLOW_ENCODER_PASS_SECONDS = 0.02
"""Duration of an encoder pass, waiting included, above which the processors count as busy."""
ENCODER_BACKOFF_FACTOR = 4.0
"""After a slow encoder pass, passes are skipped for this multiple of its duration: at most a fifth of the time."""
SHORT_CIRCUIT = "short_circuit"
"""Stage of an uncertain fast prediction where an encoder pass would not change the decision."""


class LoadShedding:
    """Limits the encoder passes of one process. For one event loop; not thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running = 0
        self._backoff_until = 0.0

    @property
    def has_capacity(self) -> bool:
        """Whether another encoder pass may start."""
        return self._running < MAX_ENCODER_PASSES and self._clock() >= self._backoff_until

    @contextmanager
    def encoder_pass(self) -> Iterator[None]:
        """Count and time one encoder pass."""
        start = self._clock()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            now = self._clock()
            if now - start > SLOW_ENCODER_PASS_SECONDS:
                self._backoff_until = now + ENCODER_BACKOFF_FACTOR * (now - start)


class Classifier:
    """A router with tenants' overlays. For one event loop; owns none of its parts.

    `encoder_timeout` limits an encoder pass in seconds: None is no limit, 0 disables encoder passes.
    """

    def __init__(self, router: Router, *, overlays: Overlays, threads: Executor, encoder_timeout: float | None) -> None:
        self._router = router
        self._overlays = overlays
        self._threads = threads
        self._encoder_timeout = encoder_timeout
        self._load_shedding = LoadShedding()

    async def classify(
        self, text: str, tenant: str | None, *, needs_encoder: Callable[[Prediction], bool]
    ) -> Prediction:
        """Return the posterior, with the tenant's overlay if there is one.

        The fast prediction runs on the event loop. An uncertain one is refined by an encoder pass in a thread, if
        `needs_encoder` returns True for it and there is capacity.
        """
        fast = self._router.predict_fast(text, force=True)
        assert fast is not None
        prediction = self._overlays.apply(fast, tenant)
        if fast.stage != LOAD_SHED:
            return prediction
        if not needs_encoder(prediction):
            return replace(prediction, stage=SHORT_CIRCUIT)
        if self._encoder_timeout == 0 or not self._load_shedding.has_capacity:
            return prediction
        refined = await self._run_encoder(text)
        return prediction if refined is None else self._overlays.apply(refined, tenant)

    def apply_overlay(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """Apply the tenant's overlay to a posterior of the router."""
        return self._overlays.apply(prediction, tenant)

    async def _run_encoder(self, text: str) -> Prediction | None:
        """Return the prediction of an encoder pass; None after the timeout."""
        with self._load_shedding.encoder_pass(), suppress(TimeoutError):
            async with asyncio.timeout(self._encoder_timeout):
                running = asyncio.get_running_loop().run_in_executor(self._threads, self._router.predict, (text,))
                (prediction,) = await running
                return prediction
        return None


MAX_LAST_TURN_CHARACTERS = 3000
"""Length of the last user message. A longer one keeps its head and its tail, where the request usually is."""
MAX_OLDER_TURN_CHARACTERS = (400, 200, 100)
"""Length of the user messages before it, newest first. A follow-up such as "and in Python?" needs them."""
MAX_SYSTEM_PROMPT_CHARACTERS = 200
MIN_USER_CHARACTERS = 40
"""With less user text, the system prompt is included. With more it would only blur the request."""


def routing_text(chat: Chat) -> str:
    """Return the text for the router, about 4,000 characters at most."""
    turns = _user_turns(chat)
    parts = [shorten(next(turns, ""), MAX_LAST_TURN_CHARACTERS)]
    parts += [shorten(turn, limit) for limit, turn in zip(MAX_OLDER_TURN_CHARACTERS, turns, strict=False)]
    if sum(map(len, parts)) < MIN_USER_CHARACTERS:
        system = [message for message in chat.messages[:1] if message.role != "user"]
        parts += [shorten(message.text, MAX_SYSTEM_PROMPT_CHARACTERS) for message in system]
    return "\n".join(part for part in parts if part)


def shorten(text: str, limit: int) -> str:
    """Cut a text to about `limit` characters: two thirds from the head, one third from the tail."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}\n{text[-tail:]}"


def _user_turns(chat: Chat) -> Iterator[str]:
    return (message.text for message in reversed(chat.messages) if message.role == "user" and message.text)
