"""What is learned about one request on its way down the line; becomes its headers, its metrics and its record."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coe.core import Api, Chat, Decision, Prediction, Reply, RequestOptions, Usage
from coe.errors import ExpertError, RequestError
from coe.records.record import RoutingRecord
from coe.registry import Prices
from coe.retrieval.retrieval import passage_ids
from coe.routing.attempts import Attempts
from coe.routing.composition import NOT_CONSULTED, RoutedAnswer, answered_by
from gateway.access import Allowance, Caller
from gateway.serving_state import Serving

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


class Trace:
    """Filled in step by step. Until a step says otherwise the outcome is `aborted`: the client left, or we stopped.

    `left` says that it was the client. The times `..._ms` are from arrival to the end of what they name, None while
    that has not come; `status` is that of the response, None where none began.
    """

    __slots__ = (
        "allowance",
        "allowed_ms",
        "api",
        "attempts",
        "caller",
        "chat",
        "classified_ms",
        "consultation",
        "consulted_ms",
        "decision",
        "first_token_ms",
        "left",
        "options",
        "outcome",
        "parsed_ms",
        "prediction",
        "read_ms",
        "reply",
        "request_id",
        "routing_ms",
        "serving",
        "spans",
        "start",
        "status",
        "text",
        "time",
    )

    def __init__(self, serving: Serving, *, api: Api) -> None:
        self.serving = serving
        self.api: Api = api
        self.time = time.time()
        self.start = time.perf_counter()
        self.request_id = new_id(self.time)
        self.outcome = "aborted"
        self.left = False
        self.caller = Caller()
        self.allowance: Allowance | None = None
        self.options: RequestOptions | None = None
        self.chat: Chat | None = None
        self.text = ""
        self.prediction: Prediction | None = None
        self.decision: Decision | None = None
        self.reply: Reply | None = None
        self.attempts = Attempts()
        self.status: int | None = None
        self.spans: Spans | None = None
        self.read_ms: float | None = None
        self.parsed_ms: float | None = None
        self.allowed_ms: float | None = None
        self.classified_ms: float | None = None
        self.routing_ms = 0.0
        self.consultation = NOT_CONSULTED
        self.consulted_ms: float | None = None
        self.first_token_ms: float | None = None

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.start) * 1000

    def routed(self) -> None:
        """Steps 1 to 4 are done."""
        self.routing_ms = self.elapsed_ms()

    async def consulted(self, chat: Chat, options: RequestOptions) -> Chat:
        """Step 5: the chat that the expert gets; the decision may change where passages were counted on in vain."""
        assert self.decision is not None
        assert self.prediction is not None
        chat, self.decision, self.consultation = await self.serving.composition.consult(
            chat, self.decision, options, text=self.text, prediction=self.prediction, tenant=self.caller.tenant
        )
        self.consulted_ms = self.elapsed_ms()
        return chat

    def answered(self, answer: RoutedAnswer) -> None:
        """Step 6 is done: the first piece is there."""
        self.first_token_ms = self.elapsed_ms()
        self.status = 200
        self.decision, self.reply = answer.decision, answer.reply

    def failed(self, error: RequestError) -> None:
        self.outcome = error.code
        decision = self.decision
        if not isinstance(error, ExpertError) or decision is None:
            return
        if self.reply is None and error.expert not in ("", decision.expert):
            cause = self.attempts.causes.get(decision.expert, error.cause)
            self.decision = answered_by(decision, error.expert, cause=cause)
        elif not decision.cause:
            self.decision = replace(decision, cause=error.cause)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers known so far. Names are ASCII by declaration; no prompt text is among them."""
        found = [(b"x-request-id", self.request_id.encode())]
        if (decision := self.decision) is not None:
            found += [
                (b"x-coe-expert", decision.expert.encode()),
                (b"x-coe-category", decision.category.encode()),
                (b"x-coe-confidence", b"%.3f" % decision.confidence),
                (b"x-coe-reason", decision.reason.encode()),
                (b"x-coe-router", self.serving.composition.router.version.encode()),
                (b"x-coe-attempts", b"%d" % self.attempts.begun),
                (b"x-coe-overhead-ms", b"%.3f" % self.routing_ms),
            ]
            if decision.fallback_from:
                found.append((b"x-coe-fallback-from", decision.fallback_from.encode()))
            if decision.cause:
                found.append((b"x-coe-cause", decision.cause.encode()))
        if self.consulted_ms is not None:
            found.append((b"x-coe-retrieval", self._retrieval()))
        if self.allowance is not None:
            found += self.allowance.headers()
        return found

    def _retrieval(self) -> bytes:
        """How the gate stood, and where it was open how many passages of about how many tokens the expert got."""
        found = self.consultation
        if found.status != "used":
            return found.status.encode()
        return b"used; passages=%d; tokens=%d" % (len(found.passages), found.tokens)

    @property
    def usage(self) -> Usage | None:
        """Tokens of the answer as far as it came."""
        return self.reply.usage if self.reply else None

    def spent(self) -> tuple[Usage, Prices] | None:
        """What was used and by which prices; None where no expert answered."""
        if self.reply is None or self.decision is None:
            return None
        return self.reply.usage, self.serving.registry.expert(self.decision.expert).prices

    @property
    def cost(self) -> float | None:
        """US dollars by the expert's declared prices; None where nothing was answered or the tokens are not known."""
        usage = self.usage
        if usage is None or self.decision is None or usage.input_tokens is None:
            return None
        made = 0 if self.api == "embeddings" else usage.output_tokens  # whose servers tell of none
        if made is None:
            return None
        prices = self.serving.registry.expert(self.decision.expert).prices
        return (usage.input_tokens * prices.input + made * prices.output) / 1e6

    def record(self) -> RoutingRecord:
        """The request's line in the routing log."""
        decision, prediction, usage, options = self.decision, self.prediction, self.usage, self.options
        composition, registry = self.serving.composition, self.serving.registry
        exploration = registry.policy.exploration
        names = composition.router.categories
        return RoutingRecord(
            request_id=self.request_id,
            time=self.time,
            category=decision.category if decision else "",
            confidence=decision.confidence if decision else 0.0,
            expert=decision.expert if decision else "",
            reason=decision.reason if decision else "",
            fallback_from=decision.fallback_from if decision else "",
            cause=decision.cause if decision else "",
            propensity=decision.propensity if decision else 1.0,
            candidates=decision.candidates if decision else (),
            probabilities=_named(names, prediction.probabilities) if prediction is not None else {},
            stage=prediction.stage if prediction is not None else "",
            router=composition.router.version,
            config=registry.digest,
            digest=hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest() if self.text else "",
            outcome=self.outcome,
            attempts=self.attempts.begun,
            stream=self.chat.stream if self.chat else False,
            routing_ms=round(self.routing_ms, 3),
            first_token_ms=round(self.first_token_ms, 3) if self.first_token_ms is not None else None,
            total_ms=round(self.elapsed_ms(), 3),
            in_distribution=prediction.in_distribution if prediction is not None else 1.0,
            cost_weight=options.cost_weight if options else 0.0,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            session=options.session if options else None,
            api=self.api,
            tenant=self.caller.tenant,
            key=self.caller.key,
            cost=self.cost,
            prompt=self.text if registry.log.store_prompts and self.text else None,
            plan=self.serving.plan,
            assignment=composition.assignment_digest,
            utility=tuple(round(utility, 4) for utility in decision.utility) if decision else (),
            price=tuple(round(price, 4) for price in decision.price) if decision else (),
            exploration=(exploration.rate, exploration.max_quality_loss) if exploration.rate else None,
            retrieval=self.consultation.status,
            gate=self.consultation.probability,
            gain=self.consultation.gain,
            trial=self.consultation.trial,
            passages=passage_ids(self.consultation.passages),
            passage_tokens=self.consultation.tokens,
            retrieval_ms=round(self.consultation.ms, 3),
            needs=tuple(sorted(self.chat.needs)) if self.chat else None,
            overlay=prediction.overlay_version if prediction is not None else "",
            purpose=(options.purpose or "") if options else "",
            plain=_named(names, prediction.router_probabilities)
            if prediction is not None and prediction.router_probabilities is not None
            else None,
        )


def new_id(now: float) -> str:
    """A request's name: milliseconds since 1970, so that a log's index grows at its end, and 80 random bits."""
    return f"req_{int(now * 1000):012x}{os.urandom(10).hex()}"


def _named(categories: tuple[str, ...], posterior: NDArray[np.float32]) -> dict[str, float]:
    return {name: round(p, 5) for name, p in zip(categories, posterior.tolist(), strict=True)}


@dataclass(frozen=True, slots=True)
class Spans:
    """Who a request's spans are, known before they are: the expert is told of the call's."""

    parent: SpanContext
    server: SpanContext
    call: SpanContext
