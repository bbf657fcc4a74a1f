"""Step 5 of a request: decide whether passages are worth their cost, find them in time and insert them.

`Retrieval` connects the gate, the document store, the encoder and the router. The gate is consulted three times: on the
router's posterior, after encoding the question, and after the search. Until a gate is fitted, the best passage's cosine
decides (`RetrievalSpec.default_similarity`). A failure or a timeout never fails the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coe.core import Chat, Encoder, Prediction, RetrievalMode, Router
from coe.registry.sections import RetrievalSpec
from coe.retrieval.gate import Array, Gate
from coe.retrieval.insertion import (
    Passage,
    Retriever,
    Vector,
    estimate_tokens,
    format_passages,
    insert_block,
    max_response_tokens,
)

_log = logging.getLogger("gateway")

Status = Literal["none", "off", "skipped", "empty", "failed", "used"]
"""none: no documents, or no place for passages in the body; off: disabled by the request; skipped: expected gain below
the price; empty: no suitable passage; failed: store unavailable or too slow; used: the expert receives passages."""
FAILURE_BACKOFF_SECONDS = 5.0
"""A store that failed is not used for this long."""
DEFAULT_RESPONSE_TOKENS = 512
"""Context reserved for a response whose length the request does not limit."""
CONTEXT_SHARE = 0.9
"""Part of the context length that is filled, because token counts are estimates."""
WARM_TEXT = "first search"
WARM_SECONDS = 15.0
"""Time limit of the search at the start, which imports the store's library, connects and opens the index."""


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Outcome of the retrieval step.

    `probability` (that passages improve the chosen expert's response) and `gain` (expected quality) are the gate's,
    None without an estimate. `passages` are those inserted, in the order of their numbers, with about `tokens` tokens.
    `ms` is the time taken."""

    status: Status = "none"
    probability: float | None = None
    gain: float | None = None
    passages: tuple[Passage, ...] = ()
    tokens: int = 0
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class RetrievalRequest:
    """A request at the retrieval step.

    `text` is the routed text and `prediction` its posterior over the gate's categories. `expert` is the index of the
    chosen expert among the gate's, None without one, and `context` its context length in tokens.
    """

    chat: Chat
    text: str
    prediction: Prediction
    expert: int | None
    context: int
    tenant: str | None
    mode: RetrievalMode


class Retrieval:
    """The retrieval step: decides by the gate, searches the store and inserts passages. For one event loop.

    It does not close the gate, store, encoder, router or thread pool.
    """

    def __init__(
        self,
        declared: RetrievalSpec,
        *,
        retriever: Retriever,
        encoder: Encoder,
        router: Router,
        threads: Executor,
        gate: Gate | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gate = gate
        self._declared = declared
        self._retriever = retriever
        self._encoder = encoder
        self._router = router
        self._threads = threads
        self._clock = clock
        self._backoff_until = -1.0
        self._search_price, self._insert_price = gate.prices(declared.price) if gate else (0.0, 0.0)

    def net_gain(self, prediction: Prediction, mode: RetrievalMode) -> Array | None:
        """Return the expected gain of passages minus their price for each expert, shape (k,), in about 10 µs.

        None if passages are not expected for any expert, or the gate has no estimate.
        """
        gate = self.gate
        if gate is None or mode == "off" or self._clock() < self._backoff_until:
            return None
        net = gate.estimate_fast(prediction.probabilities).gain - self._search_price
        if mode == "on":
            return net
        return np.maximum(net, 0.0) if net.max() > 0 else None

    async def warm(self) -> None:
        """Search once without the requests' timeout, so that the first request is not the one that imports the store's
        library and opens the index. A failure is logged: requests continue without passages."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WARM_SECONDS):
                (vector,) = await loop.run_in_executor(self._threads, self._encoder.encode, [WARM_TEXT])
                collections = self._declared.collections
                await self._retriever.search(WARM_TEXT, vector, collections=collections, limit=1)
        except Exception as error:  # a store may raise anything
            _log.warning("the document store failed the first search: %r", error)

    async def retrieve(self, request: RetrievalRequest) -> tuple[Chat, RetrievalResult]:
        """Return the chat and the outcome. The chat includes passages if they are worth their price and are found
        within the timeout."""
        if request.mode == "off":
            return request.chat, RetrievalResult("off")
        estimate = self._estimate(request, request.prediction.probabilities)
        if request.mode == "auto" and not self._is_promising(request, estimate):
            return request.chat, replace(estimate, status="none" if estimate.gain is None else "skipped")
        if insert_block(request.chat.fields, request.chat.api, "") is None:
            return request.chat, replace(estimate, status="none")
        if self._clock() < self._backoff_until:
            return request.chat, replace(estimate, status="failed")
        began = time.perf_counter()
        chat, result = request.chat, replace(estimate, status="failed")
        try:
            async with asyncio.timeout(self._declared.timeout):
                chat, result = await self._search_and_insert(request)
        except TimeoutError:
            self._back_off(f"took longer than {self._declared.timeout:g} s")
        except Exception as error:  # a store may raise anything, and the response matters more than its passages
            self._back_off(str(error))
        return chat, replace(result, ms=(time.perf_counter() - began) * 1000)

    def _back_off(self, reason: str) -> None:
        self._backoff_until = self._clock() + FAILURE_BACKOFF_SECONDS
        _log.warning("retrieval failed and is disabled for %g s: %s", FAILURE_BACKOFF_SECONDS, reason)

    async def _search_and_insert(self, request: RetrievalRequest) -> tuple[Chat, RetrievalResult]:
        """Encode the question, search and insert. The gate decides again before and after the search."""
        declared, always = self._declared, request.mode == "on" or self.gate is None
        loop = asyncio.get_running_loop()
        vector, posterior = await loop.run_in_executor(self._threads, self._encode, request)
        estimate = self._estimate(request, posterior, vector)
        if not always and (estimate.gain is None or estimate.gain <= self._search_price):
            return request.chat, replace(estimate, status="skipped")
        found = await self._retriever.search(
            request.text,
            vector,
            collections=declared.collections,
            tenant=request.tenant,
            limit=declared.max_passages,
        )
        similar = [passage for passage in found if passage.score >= declared.min_similarity]
        nearest = max((passage.score for passage in similar), default=-1.0)
        if self.gate is None and request.mode == "auto" and nearest < declared.default_similarity:
            return request.chat, replace(estimate, status="skipped" if similar else "empty")
        budget = min(declared.max_tokens, _free_context(request))
        block = format_passages(similar, budget=budget) if similar else None
        if block is None:
            return request.chat, replace(estimate, status="empty")
        estimate = self._estimate(request, posterior, vector, nearest)
        if not always and (estimate.gain is None or estimate.gain <= self._insert_price):
            return request.chat, replace(estimate, status="skipped")
        used = replace(estimate, status="used", passages=block.passages, tokens=block.tokens)
        fields = insert_block(request.chat.fields, request.chat.api, block.text)
        assert fields is not None, "checked before the search"
        return replace(request.chat, fields=fields), used

    def _encode(self, request: RetrievalRequest) -> tuple[Vector, NDArray[np.float32]]:
        """Return the question's vector, and the router's posterior given that vector."""
        embeddings = self._encoder.features([request.text])
        (prediction,) = self._router.predict([request.text], embeddings=embeddings)
        return embeddings[0, : self._encoder.dimensions], prediction.probabilities

    def _estimate(
        self,
        request: RetrievalRequest,
        posterior: NDArray[np.float32],
        vector: Vector | None = None,
        cosine: float | None = None,
    ) -> RetrievalResult:
        """Return a result with the gate's estimate for the chosen expert if there is one, by the fast model without a
        `vector`."""
        gate, expert = self.gate, request.expert
        if gate is None or expert is None:
            return RetrievalResult()
        found = gate.estimate_fast(posterior) if vector is None else gate.estimate(posterior, vector, cosine=cosine)
        return RetrievalResult(probability=float(found.helps[expert]), gain=float(found.gain[expert]))

    def _is_promising(self, request: RetrievalRequest, estimate: RetrievalResult) -> bool:
        if self.gate is None:
            return self._declared.default_similarity < 1
        if request.expert is None or estimate.gain is None:
            return False
        return bool(estimate.gain + self.gate.spread[request.expert] > self._search_price)


def _free_context(request: RetrievalRequest) -> int:
    """Return the tokens of the expert's context that are left for passages."""
    response = max_response_tokens(request.chat.fields)
    prompt = sum(estimate_tokens(message.text) for message in request.chat.messages)
    reserved = DEFAULT_RESPONSE_TOKENS if response is None else response
    return int(CONTEXT_SHARE * request.context) - prompt - reserved
