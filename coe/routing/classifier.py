"""Step 3 of a request, classify: from a chat to a posterior over the categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial

from coe.core import FAST_UNCERTAIN, GENERAL, UNDETERMINED, Chat, ExpertRule, Prediction, Router
from coe.planning.assignment import Assignment, apply_residual, information_value, residual_gain, routing_gain
from coe.registry import AUTO, ArmSpec, ExpertSpec
from coe.routing.eligibility import exclusion, ineligibility
from coe.routing.encoder_passes import SHORT_CIRCUIT, EncoderPasses
from coe.routing.phrases import opens_topic
from coe.routing.reading import reading_model
from coe.routing.request_text import RoutedText, read_request
from coe.routing.rules import Rules

MIN_INFORMATION_VALUE = 0.01
MIN_SHARE_OF_ROUTING_GAIN = 0.5
"""An encoder pass is worth its time if knowing the category would gain enough expected quality: more than
MIN_INFORMATION_VALUE, and more than this share of the routing gain. Declared qualities have an
arbitrary scale, so the bound is also relative to the routing gain. Both were chosen on held-out training prompts
(docs/experiments/cascade-and-encoders.md)."""
MIN_RESIDUAL_GAIN = 0.002
"""An encoder pass is also worth its time if the plan's residual is expected to gain more than this much quality in the
categories of the posterior (docs/experiments/plans.md)."""
MAX_CACHED_GAINS = 128
"""Sets of eligible experts whose gains are cached. Capabilities, languages and rules of keys make few sets."""


class Classifier:
    """Predicts fast on the event loop, and uses the encoder where it may change the decision of the assignment.

    `specs` are the arms of the assignment in its order. With `retrieves`, documents are declared.
    """

    def __init__(
        self,
        router: Router,
        *,
        assignment: Assignment,
        specs: Sequence[ExpertSpec | ArmSpec],
        confidence_threshold: float,
        encoder_timeout: float | None,
        threads: Executor,
        retrieves: bool,
        rules: Rules | None = None,
    ) -> None:
        self._router = router
        self._assignment = assignment
        self._specs = specs
        # The gains depend on the plan, fixed here, and on which experts are eligible for a request; not on health.
        self._routing_gain = lru_cache(maxsize=MAX_CACHED_GAINS)(partial(routing_gain, assignment))
        self._residual_gain = lru_cache(maxsize=MAX_CACHED_GAINS)(partial(residual_gain, assignment))
        self._confidence_threshold = confidence_threshold
        finish = partial(apply_residual, assignment)
        self._encoder_passes = EncoderPasses(router, threads=threads, timeout=encoder_timeout, finish=finish)
        self._retrieves = retrieves
        self._rules = rules
        self._general = router.categories.index(GENERAL)
        reading_model()  # read its file now, and not in a request

    async def classify(
        self, chat: Chat, rule: ExpertRule | None = None, rules: Sequence[str] = ()
    ) -> tuple[RoutedText, Prediction]:
        """Return the routed text and its posterior, after the first of the matching `rules` that holds.

        The newest request of a conversation is routed alone if it opens a topic, which the fast heads help to decide.
        """
        routed, fast = read_topic(chat, self._predict_fast, general=self._general)
        matching = self._rules if rules else None
        if matching is not None and matching.needs_no_encoder(rules):
            if fast.stage == FAST_UNCERTAIN:
                fast = replace(fast, stage=SHORT_CIRCUIT)
        else:
            fast = await self._refined(fast, routed.text, chat, rule)
        return routed, matching.apply(rules, fast) if matching else fast

    def _predict_fast(self, text: str) -> Prediction:
        """Return the fast prediction, of stage FAST_UNCERTAIN if it is uncertain.

        Runs on the event loop, in about 0.1 ms.
        """
        fast = self._router.predict_fast(text, force=True)
        assert fast is not None
        return fast

    async def _refined(self, fast: Prediction, text: str, chat: Chat, rule: ExpertRule | None) -> Prediction:
        """Use the encoder if it might change the choice between the experts that the `rule` permits."""
        if not self._needs_encoder(chat, fast, rule):
            return replace(fast, stage=SHORT_CIRCUIT) if fast.stage == FAST_UNCERTAIN else fast
        refined = await self._encoder_passes.predict(text, foreign=fast.language == UNDETERMINED)
        return fast if refined is None else refined

    def _needs_encoder(self, chat: Chat, prediction: Prediction, rule: ExpertRule | None) -> bool:
        """True if a better posterior, or the plan's residual, may select an expert that is better by enough.

        With documents, always True of an uncertain text. No encoder helps a text that is sure and not English: without
        the extra `multilingual`, the router counts a text mostly in another script as sure.
        """
        is_uncertain = prediction.stage == FAST_UNCERTAIN
        if not is_uncertain and (self._assignment.residual is None or prediction.language == UNDETERMINED):
            return False
        if self._retrieves and is_uncertain:
            return True
        if chat.model != AUTO:
            return False
        eligible = [
            index
            for index, spec in enumerate(self._specs)
            if not ineligibility(chat, spec) and not exclusion(rule, spec)
        ]
        if len(eligible) < 2:
            return False
        if prediction.language == UNDETERMINED:  # the fast heads know English
            return True
        if prediction.probabilities @ self._residual_gain(tuple(eligible)) > MIN_RESIDUAL_GAIN:
            return True
        if not is_uncertain:
            return False
        uncertain = prediction.confidence < self._confidence_threshold
        value = information_value(self._assignment, prediction.probabilities, eligible, uncertain=uncertain)
        share = MIN_SHARE_OF_ROUTING_GAIN * self._routing_gain(tuple(eligible))
        return value > max(MIN_INFORMATION_VALUE, share)


def read_topic(chat: Chat, predict_fast: Callable[[str], Prediction], *, general: int) -> tuple[RoutedText, Prediction]:
    """Return the text of a chat to route, the newest request alone if it opens a topic, and its fast prediction.

    `general` is the index of the category `general`.
    """
    routed = read_request(chat)
    if routed.newest and chat.model == AUTO:
        alone = predict_fast(routed.newest)
        opens = opens_topic(routed.newest, float(alone.probabilities[general]))
        if opens:
            return replace(routed, text=routed.newest), alone
        routed = replace(routed, continues=routed.has_task)
    return routed, predict_fast(routed.text)
