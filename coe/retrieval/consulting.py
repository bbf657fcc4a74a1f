"""Step 5 of the line: whether passages pay for a request, and if so, finding them in time. Never fails a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from coe.core import Chat, Consent, Encoder, Prediction
from coe.registry.retrieval import Retrieval
from coe.retrieval.gate import Array, Gate
from coe.retrieval.insertion import answer_tokens, with_block
from coe.retrieval.marking import Block, marked, tokens_of
from coe.retrieval.passages import Passage, Retriever, Vector

_log = logging.getLogger("gateway")

Status = Literal["none", "off", "shut", "empty", "failed", "open"]
"""none: nothing to consult, or nowhere to put it; off: the request said so; shut: not worth its price; empty: nothing
was found that fits; failed: the store was away or late; open: the expert is given passages."""
NEARLY = 0.5
"""Part of the price from which on a gain expected at a glance is worth a closer look: some ms, for the vector."""
REST = 5.0
"""Seconds for which a store that failed is left alone."""
ANSWER = 512
"""Tokens of context kept for an answer whose length the request does not bound."""


@dataclass(frozen=True, slots=True)
class Consultation:
    """What became of it. `probability` is the gate's that passages improve the chosen expert's answer, None where it
    was not asked; `passages` are those that were given, in the order of their numbers; `tokens` about how many they
    are; `ms` how long it took."""

    status: Status = "none"
    probability: float | None = None
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
    consent: Consent


class Consultant:
    """Gate, store and encoder put together; owns none of them. For one event loop."""

    def __init__(
        self,
        declared: Retrieval,
        *,
        retriever: Retriever,
        encoder: Encoder,
        threads: Executor,
        gate: Gate | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gate = gate
        self._declared = declared
        self._retriever = retriever
        self._encoder = encoder
        self._threads = threads
        self._clock = clock
        self._resting_until = -1.0
        used = gate.use if gate else None
        self._token_price = declared.price.thousand_tokens * used.tokens / 1000 if used else 0.0
        self._price = self._token_price + (declared.price.second * used.seconds if used else 0.0)

    def lift(self, prediction: Prediction, consent: Consent) -> Array | None:
        """What passages would add to each expert's worth, price taken off, shape (k,), at a glance: some ten
        microseconds. None where there would be none, or nothing is known of what they do."""
        gate = self.gate
        if gate is None or consent == "off" or self._clock() < self._resting_until:
            return None
        net = gate.gain(gate.glanced(prediction.probabilities)) - self._price
        if consent == "on":
            return net
        return np.maximum(net, 0.0) if net.max() > 0 else None

    async def consult(self, question: Question) -> tuple[Chat, Consultation]:
        """The chat, with passages where they pay and are found within the deadline, and what became of it."""
        if question.consent == "off":
            return question.chat, Consultation("off")
        probability = self._glance(question)
        if question.consent == "auto" and not self._pays(question, probability, self._price * NEARLY):
            shut = self.gate is not None and question.expert is not None
            return question.chat, Consultation("shut" if shut else "none", probability)
        if with_block(question.chat.fields, question.chat.api, "") is None:
            return question.chat, Consultation("none", probability)
        if self._clock() < self._resting_until:
            return question.chat, Consultation("failed", probability)
        return await self._in_time(question, probability)

    async def _in_time(self, question: Question, probability: float | None) -> tuple[Chat, Consultation]:
        began = time.perf_counter()
        note, chat = Consultation("failed", probability), question.chat
        try:
            async with asyncio.timeout(self._declared.deadline):
                chat, note = await self._look(question)
        except TimeoutError:
            self._fail(f"took longer than {self._declared.deadline:g} s")
        except Exception as error:  # whatever a store has, the answer is worth more than its passages
            self._fail(str(error))
        return chat, replace(note, ms=(time.perf_counter() - began) * 1000)

    def _fail(self, why: str) -> None:
        self._resting_until = self._clock() + REST
        _log.warning("documents were not consulted, nor are they for %g s: %s", REST, why)

    async def _look(self, question: Question) -> tuple[Chat, Consultation]:
        """The vector, with which the gate judges again, then the search, after which its price is paid."""
        loop = asyncio.get_running_loop()
        vector: Vector = (await loop.run_in_executor(self._threads, self._encoder.encode, [question.text]))[0]
        probability = self._closer(question, vector, None)
        if question.consent == "auto" and not self._pays(question, probability, self._price):
            return question.chat, Consultation("shut", probability)
        declared = self._declared
        found = await self._retriever.search(
            question.text,
            vector,
            collections=declared.collections,
            tenant=question.tenant,
            limit=declared.passages,
        )
        like = [passage for passage in found if passage.score >= declared.least_cosine]
        block = marked(like, budget=min(declared.tokens, _room(question))) if like else None
        if block is None:
            return question.chat, Consultation("empty", probability)
        probability = self._closer(question, vector, max(passage.score for passage in like))
        if question.consent == "auto" and not self._pays(question, probability, self._token_price):
            return question.chat, Consultation("shut", probability)
        return _given(question.chat, block), Consultation("open", probability, block.passages, block.tokens)

    def _glance(self, question: Question) -> float | None:
        if self.gate is None or question.expert is None:
            return None
        return float(self.gate.glanced(question.prediction.probabilities)[question.expert])

    def _closer(self, question: Question, vector: Vector, cosine: float | None) -> float | None:
        if self.gate is None or question.expert is None:
            return None
        seen = self.gate.looked(question.prediction.probabilities, question.text, vector, cosine=cosine)
        return float(seen[question.expert])

    def _pays(self, question: Question, probability: float | None, price: float) -> bool:
        """Whether the chosen expert is expected to gain more than the price."""
        if self.gate is None or question.expert is None or probability is None:
            return False
        up, down = self.gate.up[question.expert], self.gate.down[question.expert]
        return bool(probability * up - (1 - probability) * down > price)


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
