"""A logged request decided again, with the router, the plan and the experts as they are now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coe.core import GENERAL, Api, Capability, Chat, Decision, Prediction, RequestOptions
from coe.errors import NotClassified
from coe.records.record import RoutingRecord
from coe.registry import AUTO
from coe.routing.composition import Composition
from coe.routing.eligibility import CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class ReplayedDecision:
    """What would happen now. `source` says what was classified: the `prompt` that the log kept, by the router in use;
    or nothing, and the `posterior` is that of then, over the categories of now."""

    source: Literal["prompt", "posterior"]
    prediction: Prediction
    decision: Decision


async def decide_again(composition: Composition, record: RoutingRecord) -> ReplayedDecision:
    """A pin stays a pin and a follow-up stays a follow-up of the same expert; nothing explores. Raises NotClassified
    where the request never got so far, and what `decide` does where nobody can take it now."""
    if not record.probabilities:
        raise NotClassified(f"request {record.request_id} ended before it had a category ({record.outcome})")
    chat = _chat(record)
    if record.prompt is not None:
        source: Literal["prompt", "posterior"] = "prompt"
        prediction = await composition.read(record.prompt, chat, record.tenant)
    else:
        source, prediction = "posterior", _logged(composition, record)
    options = RequestOptions(cost_weight=record.cost_weight, retrieval="off" if record.retrieval == "off" else "auto")
    previous = record.candidates[0] if record.reason == "sticky" else None
    return ReplayedDecision(source, prediction, composition.weigh(chat, prediction, options, previous=previous))


def _logged(composition: Composition, record: RoutingRecord) -> Prediction:
    """The router's posterior as it was logged, with the overlay that is in use now. What is no longer declared counts
    as general."""
    categories = composition.router.categories
    posterior = np.zeros(len(categories), dtype=np.float32)
    for name, probability in (record.probabilities if record.plain is None else record.plain).items():
        posterior[categories.index(name if name in categories else GENERAL)] += probability
    posterior /= max(float(posterior.sum()), 1e-9)
    return composition.overlaid(Prediction(posterior, record.stage, record.in_distribution), record.tenant)


def _chat(record: RoutingRecord) -> Chat:
    """As much of it as `decide` reads. Its length is told by its tokens, where they were counted."""
    tokens = max(0, (record.input_tokens or 0) - record.passage_tokens)
    return Chat(
        model=record.candidates[0] if record.reason == "pinned" else AUTO,
        messages=(),
        stream=record.stream,
        needs=frozenset(need for need in get_args(Capability) if need in (record.needs or ())),
        characters=tokens * CHARACTERS_PER_TOKEN,
        fields={},
        api=next((api for api in get_args(Api) if api == record.api), "chat"),
    )
