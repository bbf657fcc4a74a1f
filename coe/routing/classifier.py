"""Step 3 of a request, classify: from a chat to a posterior over the categories.

`Classifier` predicts fast on the event loop, and requests an encoder pass only if it may change the decision.
`EncoderPasses` runs these passes in threads, which compete with the event loop for processors. `LoadShedding` limits
the number of concurrent passes. After a pass that mostly waited, it skips passes for a while, since processors are
busy.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import lru_cache, partial

from coe.core import FAST_UNCERTAIN, GENERAL, UNDETERMINED, Chat, ExpertRule, Prediction, Router
from coe.planning.assignment import Assignment, apply_residual, information_value, residual_gain, routing_gain
from coe.registry import AUTO
from coe.routing.decision import Capable
from coe.routing.request_text import RoutedText, read_request
from coe.routing.rules import Rules
from coe.routing.units import opens_topic, reading_model

MAX_ENCODER_PASSES = 4
"""Passes of one kind at once. The gateway has two threads for all passes, so two run and the others wait."""
SLOW_ENCODER_PASS_SECONDS = 0.02
SLOW_MULTILINGUAL_PASS_SECONDS = 0.2
"""Largest duration of an encoder pass, waiting included, that is not slow. It is longer for texts that are not English,
because the fast heads classify these poorly."""
BUSY_RATIO = 3.0
"""A pass is slow only if its duration also exceeds this many times its own processor time. A long text on a slow
processor takes longer than SLOW_ENCODER_PASS_SECONDS without any waiting."""
ENCODER_BACKOFF_FACTOR = 4.0
"""After a slow pass of n seconds, no pass starts for 4 n seconds, but at most MAX_BACKOFF_SECONDS. So slow passes of up
to 0.25 s take at most a fifth of the time."""
MAX_BACKOFF_SECONDS = 1.0
"""Limit of the time without passes. Without it, the first pass, which also loads the multilingual encoder, would stop
passes for long."""
MAX_CACHED_RESULTS = 1024
"""Most recently used encoder results that are cached, about 5 MB with the encoder's features. Loops of tool calls
repeat a request, and several clients send the same prompts."""
SHORT_CIRCUIT = "short_circuit"
"""Stage of a fast prediction that is uncertain, but for which an encoder pass is not worth its time."""


class LoadShedding:
    """Limits the encoder passes of one kind (English or multilingual). For one event loop; not thread-safe.

    A pass counts as slow if it takes more than `slow` seconds and more than BUSY_RATIO times its own processor time.
    """

    def __init__(self, *, slow: float = SLOW_ENCODER_PASS_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._slow = slow
        self._clock = clock
        self._running = 0
        self._backoff_until = 0.0

    @property
    def has_capacity(self) -> bool:
        """True if another encoder pass may start."""
        return self._running < MAX_ENCODER_PASSES and self._clock() >= self._backoff_until

    def begin(self) -> float:
        """Count a pass that starts, and return its start."""
        self._running += 1
        return self._clock()

    def end(self, start: float, processor_seconds: float) -> None:
        """Count a pass that ends. Its processor time is 0 after a timeout, cancellation or error."""
        self._running -= 1
        now = self._clock()
        if now - start > max(self._slow, BUSY_RATIO * processor_seconds):
            backoff = min(MAX_BACKOFF_SECONDS, ENCODER_BACKOFF_FACTOR * (now - start))
            self._backoff_until = max(self._backoff_until, now + backoff)


class EncoderPasses:
    """Runs the encoder passes of a router, within limits of time and load. For one event loop; owns none of its parts.
    `finish` completes a prediction in the thread of its pass.

    `timeout` limits a pass in seconds: None means unlimited, 0 disables passes. The MAX_CACHED_RESULTS most recently
    used results are cached by the digest of the stripped text. So are results without an identified language, since a
    multilingual stage that is absent or cannot be loaded stays so.
    """

    def __init__(
        self,
        router: Router,
        *,
        threads: Executor,
        timeout: float | None,
        finish: Callable[[Prediction], Prediction] = lambda prediction: prediction,
    ) -> None:
        self._router = router
        self._finish = finish
        self._threads = threads
        self._timeout = timeout
        self._load_shedding = LoadShedding()
        self._multilingual_load_shedding = LoadShedding(slow=SLOW_MULTILINGUAL_PASS_SECONDS)
        self._results: OrderedDict[bytes, Prediction] = OrderedDict()
        """Cached results, the most recently used last."""

    async def predict(self, text: str, *, foreign: bool) -> Prediction | None:
        """Return the router's prediction for a text by all its heads; None if passes are disabled, skipped or too slow.

        `foreign`: the text is probably not English, so it takes a pass of the multilingual encoder.
        """
        if self._timeout == 0:
            return None
        text = text.strip()
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if (found := self._results.get(key)) is None:
            found = await self._run(text, foreign=foreign)
            if found is None:
                return None
            self._results[key] = found
            if len(self._results) > MAX_CACHED_RESULTS:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        return found

    async def _run(self, text: str, *, foreign: bool) -> Prediction | None:
        """Return the prediction of a pass in a thread; None without capacity or after the timeout."""
        load_shedding = self._multilingual_load_shedding if foreign else self._load_shedding
        if not load_shedding.has_capacity:
            return None
        start, used = load_shedding.begin(), 0.0
        try:
            async with asyncio.timeout(self._timeout):
                running = asyncio.get_running_loop().run_in_executor(self._threads, self._predict, text)
                found, used = await running
            return found
        except TimeoutError:
            return None
        finally:
            load_shedding.end(start, used)

    def _predict(self, text: str) -> tuple[Prediction, float]:
        """Return the router's prediction, and the processor time in seconds that this thread spent on it."""
        start = time.thread_time()
        (found,) = self._router.predict((text,), encode=True)
        return self._finish(found), time.thread_time() - start


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

    `capable` are the arms that can take a request. With `retrieves`, documents are declared.
    """

    def __init__(
        self,
        router: Router,
        *,
        assignment: Assignment,
        capable: Capable,
        confidence_threshold: float,
        encoder_timeout: float | None,
        threads: Executor,
        retrieves: bool,
        rules: Rules | None = None,
    ) -> None:
        self._router = router
        self._assignment = assignment
        self._capable = capable
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
        routed, fast = read_topic(chat, self._router.predict_fast, general=self._general)
        matching = self._rules if rules else None
        is_decided = matching is not None and matching.needs_no_encoder(rules)
        if not is_decided and self._needs_encoder(chat, fast, rule):
            is_foreign = fast.language == UNDETERMINED
            fast = await self._encoder_passes.predict(routed.text, foreign=is_foreign) or fast
        elif fast.stage == FAST_UNCERTAIN:
            fast = replace(fast, stage=SHORT_CIRCUIT)
        return routed, matching.apply(rules, fast) if matching else fast

    def _needs_encoder(self, chat: Chat, prediction: Prediction, rule: ExpertRule | None) -> bool:
        """True if a better posterior, or the plan's residual, may select an expert that is better by enough.

        With documents or near a corrected prompt, always True of an uncertain text. No encoder helps a text that is
        sure and not English: without the extra `multilingual`, the router counts a text mostly in another script as
        sure.
        """
        is_uncertain = prediction.stage == FAST_UNCERTAIN
        if not is_uncertain and (self._assignment.residual is None or prediction.language == UNDETERMINED):
            return False
        if self._retrieves and is_uncertain:
            return True
        if chat.model != AUTO:
            return False
        capable = self._capable(chat, rule)
        eligible = [index for index, name in enumerate(self._assignment.experts) if name in capable]
        if len(eligible) < 2:
            return False
        if prediction.language == UNDETERMINED or prediction.correction:  # the fast heads know English, and words
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
        if opens_topic(routed.newest, float(alone.probabilities[general])):
            return replace(routed, text=routed.newest), alone
        routed = replace(routed, continues=routed.has_task)
    return routed, predict_fast(routed.text)
