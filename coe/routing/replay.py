"""Replays a logged request: decides it again with the current router, plan and health of experts.

The admin API uses it for the replay of a record (`/v1/records`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from coe.core import GENERAL, Api, Capability, Chat, Decision, ExpertRule, Prediction, RequestOptions
from coe.errors import NotClassified
from coe.records.record import RoutingRecord
from coe.registry import AUTO
from coe.routing.composition import Composition
from coe.routing.decision import NO_PREVIOUS, Previous
from coe.routing.eligibility import MAX_CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class ReplayedDecision:
    """The current prediction and decision for a logged request.

    `source` is the source of the prediction: the stored `prompt`, classified by the current router, or the logged
    `posterior`, mapped to the current categories.
    """

    source: Literal["prompt", "posterior"]
    prediction: Prediction
    decision: Decision


async def replay(composition: Composition, record: RoutingRecord) -> ReplayedDecision:
    """Decide a logged request again, without exploration. Pinned and sticky requests keep their expert. The rule of
    the logged name applies again, as it is now declared.

    Raises NotClassified if the request ended before classification, and the errors of `decide`.
    """
    if not record.probabilities:
        raise NotClassified(f"the router did not classify request {record.request_id} ({record.outcome})")
    chat = _logged_chat(record)
    rule = _logged_rule(composition, record)
    if record.prompt is not None:
        source: Literal["prompt", "posterior"] = "prompt"
        prediction = await composition.classifier.classify_text(record.prompt, chat, rule=rule)
    else:
        source, prediction = "posterior", _logged_prediction(composition, record)
    if composition.rules is not None:
        prediction = composition.rules.apply((record.rule,), prediction)
    options = RequestOptions(
        cost_weight=record.cost_weight,
        retrieval="off" if record.retrieval == "off" else "auto",
        rule=rule,
    )
    previous = Previous(record.candidates[0], continues=True) if record.reason == "sticky" else NO_PREVIOUS
    return ReplayedDecision(source, prediction, composition.decide(chat, prediction, options, previous=previous))


def _logged_prediction(composition: Composition, record: RoutingRecord) -> Prediction:
    """Return the logged posterior of the router.

    The probability of a category that is no longer declared goes to `general`.
    """
    categories = composition.router.categories
    posterior = np.zeros(len(categories), dtype=np.float32)
    for name, probability in (
        record.probabilities if record.router_probabilities is None else record.router_probabilities
    ).items():
        posterior[categories.index(name if name in categories else GENERAL)] += probability
    posterior /= max(float(posterior.sum()), 1e-9)
    return Prediction(posterior, record.stage, record.in_distribution, language=record.language)


def _logged_rule(composition: Composition, record: RoutingRecord) -> ExpertRule | None:
    """Return a rule that excludes the experts that the logged request excluded; None without any."""
    if not record.excluded and not record.only_local:
        return None
    names = (name for name in composition.registry.expert_names if name not in record.excluded)
    return ExpertRule(record.key or "", tuple(names), record.only_local)


def _logged_chat(record: RoutingRecord) -> Chat:
    """Return the part of the chat that `decide` reads. Its length is estimated from the logged tokens."""
    tokens = max(0, (record.input_tokens or 0) - record.passage_tokens)
    return Chat(
        model=record.candidates[0] if record.reason == "pinned" else AUTO,
        messages=(),
        stream=record.stream,
        needs=frozenset(need for need in get_args(Capability) if need in (record.needs or ())),
        characters=tokens * MAX_CHARACTERS_PER_TOKEN,
        fields={},
        api=next((api for api in get_args(Api) if api == record.api), "chat"),
    )
