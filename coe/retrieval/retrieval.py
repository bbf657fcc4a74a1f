"""Step 5 of the line: whether passages pay for a request, and if so, finding them in time. Never fails a request."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.core import Chat, Encoder, Prediction, RetrievalMode, Router
from coe.registry.retrieval import RetrievalSpec
from coe.retrieval.gate import Array, Gate, GateEstimate, GateThresholds, Use
from coe.retrieval.insertion import Block, answer_tokens, marked, tokens_of, with_block
from coe.retrieval.passages import Passage, Retriever, Vector

_log = logging.getLogger("gateway")

Status = Literal["none", "off", "shut", "empty", "failed", "held", "open"]
"""none: nothing to consult, or nowhere to put it; off: the request said so; shut: not worth its price; empty: nothing
was found that fits; failed: the store was away or late; held: found, but a coin held it back, to learn what passages
change; open: the expert is given passages."""
REST = 5.0
"""Seconds for which a store that failed is left alone."""
ANSWER = 512
"""Tokens of context kept for an answer whose length the request does not bound."""


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """What became of it. `probability` is the gate's that passages improve the chosen expert's answer and `gain` the
    quality that it expects of them, None where it was not asked; `trial` is the version of the gate in whose place a
    coin decided; `passages` are those that were given, in the order of their numbers; `tokens` about how many they are;
    `ms` how long it took."""

    status: Status = "none"
    probability: float | None = None
    gain: float | None = None
    trial: str = ""
    passages: tuple[Passage, ...] = ()
    tokens: int = 0
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is consulted about: the chat, its routed text and posterior (over the gate's categories), the index of the
    chosen expert among the gate's, None where it has none, how many tokens its context holds, and whose it is."""

    chat: Chat
    text: str
    prediction: Prediction
    expert: int | None
    context: int
    tenant: str | None
    consent: RetrievalMode


class Retrieval:
    """Gate, store, encoder and router put together; owns none of them. For one event loop. `version` is the gate's,
    and `uniform` draws from [0, 1)."""

    def __init__(
        self,
        declared: RetrievalSpec,
        *,
        retriever: Retriever,
        encoder: Encoder,
        router: Router,
        threads: Executor,
        gate: Gate | None,
        version: str = "",
        uniform: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gate = gate
        self._declared = declared
        self._retriever = retriever
        self._encoder = encoder
        self._router = router
        self._threads = threads
        self._clock = clock
        self._resting_until = -1.0
        self._version, self._uniform = version, uniform
        self._bars = GateThresholds.of(gate.use if gate else Use(0.0, 0.0), declared.price)

    def lift(self, prediction: Prediction, consent: RetrievalMode) -> Array | None:
        """What passages would add to each expert's worth, price taken off, shape (k,), at a glance: some ten
        microseconds. None where there would be none, or nothing is known of what they do."""
        gate = self.gate
        if gate is None or consent == "off" or self._clock() < self._resting_until:
            return None
        net = gate.glanced(prediction.probabilities).gain - self._bars.search
        if consent == "on":
            return net
        return np.maximum(net, 0.0) if net.max() > 0 else None

    async def consult(self, question: Question) -> tuple[Chat, RetrievalResult]:
        """The chat, with passages where they pay and are found within the deadline, and what became of it."""
        if question.consent == "off":
            return question.chat, RetrievalResult("off")
        hope = self._glance(question)
        trial = bool(hope) and question.consent == "auto" and self._uniform() < self._declared.exploration_rate
        if question.consent == "auto" and not trial and not self._promising(question, hope):
            return question.chat, _noted("shut" if hope else "none", hope)
        if with_block(question.chat.fields, question.chat.api, "") is None:
            return question.chat, _noted("none", hope)
        if self._clock() < self._resting_until:
            return question.chat, _noted("failed", hope)
        return await self._in_time(question, hope, trial)

    async def _in_time(
        self, question: Question, hope: _ExpectedGain | None, trial: bool
    ) -> tuple[Chat, RetrievalResult]:
        began = time.perf_counter()
        note, chat = _noted("failed", hope), question.chat
        try:
            async with asyncio.timeout(self._declared.timeout):
                chat, note = await self._look(question, trial)
        except TimeoutError:
            self._fail(f"took longer than {self._declared.timeout:g} s")
        except Exception as error:  # whatever a store has, the answer is worth more than its passages
            self._fail(str(error))
        return chat, replace(note, ms=(time.perf_counter() - began) * 1000)

    def _fail(self, why: str) -> None:
        self._resting_until = self._clock() + REST
        _log.warning("documents were not consulted, nor are they for %g s: %s", REST, why)

    async def _look(self, question: Question, trial: bool) -> tuple[Chat, RetrievalResult]:
        """The vector, with which the gate judges again, then the search, after which its price is paid. In a trial all
        of it is done, and a coin decides in the end."""
        loop, eager = asyncio.get_running_loop(), trial or question.consent == "on"
        vector, posterior = await loop.run_in_executor(self._threads, self._seen, question)
        hope = self._closer(question, posterior, vector, None)
        if not eager and not (hope and hope.gain > self._bars.search):
            return question.chat, _noted("shut", hope)
        declared = self._declared
        found = await self._retriever.search(
            question.text,
            vector,
            collections=declared.collections,
            tenant=question.tenant,
            limit=declared.max_passages,
        )
        like = [passage for passage in found if passage.score >= declared.min_similarity]
        block = marked(like, budget=min(declared.max_tokens, _room(question))) if like else None
        if block is None:
            return question.chat, _noted("empty", hope)
        hope = self._closer(question, posterior, vector, max(passage.score for passage in like))
        if not eager and not (hope and hope.gain > self._bars.give):
            return question.chat, _noted("shut", hope)
        version = self._version if trial else ""
        if trial and self._uniform() < 0.5:
            return question.chat, replace(_noted("held", hope), trial=version)
        note = replace(_noted("open", hope), trial=version, passages=block.passages, tokens=block.tokens)
        return _given(question.chat, block), note

    def _seen(self, question: Question) -> tuple[Vector, NDArray[np.float32]]:
        """The question's vector, and what the router makes of it with that."""
        embeddings = self._encoder.features([question.text])
        (prediction,) = self._router.predict([question.text], embeddings=embeddings)
        return embeddings[0, : self._encoder.dimensions], prediction.probabilities

    def _glance(self, question: Question) -> _ExpectedGain | None:
        if self.gate is None or question.expert is None:
            return None
        return _hope(self.gate.glanced(question.prediction.probabilities), question.expert)

    def _promising(self, question: Question, hope: _ExpectedGain | None) -> bool:
        if self.gate is None or question.expert is None or hope is None:
            return False
        return self.gate.promise(hope.gain, question.expert, self._bars.search) > self._bars.look

    def _closer(
        self, question: Question, posterior: NDArray[np.float32], vector: Vector, cosine: float | None
    ) -> _ExpectedGain | None:
        if self.gate is None or question.expert is None:
            return None
        return _hope(self.gate.looked(posterior, question.text, vector, cosine=cosine), question.expert)


@dataclass(frozen=True, slots=True)
class _ExpectedGain:
    """What passages are expected to do to the chosen expert's answer: the probability that they improve it, and the
    change of its quality."""

    chance: float
    gain: float


def _hope(outlook: GateEstimate, expert: int) -> _ExpectedGain:
    return _ExpectedGain(float(outlook.helps[expert]), float(outlook.gain[expert]))


def _noted(status: Status, hope: _ExpectedGain | None) -> RetrievalResult:
    return RetrievalResult(status, hope.chance, hope.gain) if hope else RetrievalResult(status)


def sources(passages: Sequence[Passage]) -> tuple[str, ...]:
    """The ids of passages, for the record."""
    return tuple(passage.id for passage in passages)


def _room(question: Question) -> int:
    """Tokens that the context has left for passages."""
    asked = answer_tokens(question.chat.fields)
    said = sum(tokens_of(message.text) for message in question.chat.messages)
    return int(0.9 * question.context) - said - (ANSWER if asked is None else asked)


def _given(chat: Chat, block: Block) -> Chat:
    fields = with_block(chat.fields, chat.api, block.text)
    assert fields is not None, "whether there is a place was asked before the search"
    return replace(chat, fields=fields)
