"""Step 3 of a request, classify: the optional parts after the fast prediction, an encoder pass and a tenant's overlay.

`Classifier` predicts fast on the event loop, and requests an encoder pass only if it may change the decision.
`EncoderPasses` runs these passes in threads, which compete with the event loop for processors. `LoadShedding` limits
the number of concurrent passes. After a pass that mostly waited, it skips passes for a while, since processors are
busy.

An `Overlay` is a tenant's own linear head on the global router's posterior (matrix and vector scaling, Guo et al.
2017). `coe retrain` fits overlays to the tenant's corrections.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import Prediction, Router
from coe.errors import ArtifactError

Array = NDArray[np.float64]

OVERLAYS_FILE = "overlays.jsonl"
"""File in an artifact of overlays: one overlay per line."""
MIN_PROBABILITY = 1e-4
"""Lower bound of the posterior before its logarithm."""
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


@dataclass(slots=True)
class EncoderPass:
    """One encoder pass. `processor_seconds` is set at its end; after a timeout, cancellation or error it is 0."""

    processor_seconds: float = 0.0


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

    @contextmanager
    def encoder_pass(self) -> Iterator[EncoderPass]:
        """Count and time one encoder pass. The caller sets `processor_seconds` of the yielded value."""
        start, one = self._clock(), EncoderPass()
        self._running += 1
        try:
            yield one
        finally:
            self._running -= 1
            now = self._clock()
            if now - start > max(self._slow, BUSY_RATIO * one.processor_seconds):
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
        with load_shedding.encoder_pass() as one, suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                running = asyncio.get_running_loop().run_in_executor(self._threads, self._predict, text)
                found, one.processor_seconds = await running
            return found
        return None

    def _predict(self, text: str) -> tuple[Prediction, float]:
        """Return the router's prediction, and the processor time in seconds that this thread spent on it."""
        start = time.thread_time()
        (found,) = self._router.predict((text,), encode=True)
        return self._finish(found), time.thread_time() - start


@dataclass(frozen=True, slots=True, eq=False)
class Overlays:
    """The overlays in use, by tenant, and the `version` of their artifact."""

    version: str = ""
    by_tenant: Mapping[str, Overlay] = field(default_factory=lambda: MappingProxyType({}))

    def apply(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """Return the prediction after the tenant's overlay, and the router's posterior in it; unchanged without one."""
        overlay = self.by_tenant.get(tenant) if tenant is not None else None
        if overlay is None:
            return prediction
        posterior = prediction.probabilities
        adapted = overlay.apply(posterior).astype(np.float32)
        return replace(prediction, probabilities=adapted, overlay_version=self.version, router_probabilities=posterior)


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Maps a posterior p to softmax(log p @ weights + bias), with `weights` of shape (m, m) and `bias` of shape (m,).

    `gain` is the gain in accuracy over the router alone on held-out requests, weighted by how certain their category
    is. `requests` is the number of requests that it was fitted to, `fitted_until` the time of the newest one (Unix
    seconds).
    """

    tenant: str
    categories: tuple[str, ...]
    weights: Array
    bias: Array
    gain: float
    requests: int = 0
    fitted_until: float = 0.0

    def apply(self, posterior: NDArray[np.floating]) -> Array:
        """Return the tenant's posterior for the router's, shape (m,) or (n, m)."""
        return softmax(log_posterior(posterior) @ self.weights + self.bias)

    def to_json(self) -> bytes:
        """Serialize to one line of JSON; equal overlays give equal bytes."""
        fields = asdict(self) | {"version": 1, "weights": self.weights.tolist(), "bias": self.bias.tolist()}
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Overlay:
        """Parse the result of `to_json`. Raises ArtifactError."""
        try:
            fields = orjson.loads(data)
            if fields["version"] != 1:
                raise ValueError(f"version {fields['version']}, not 1")
            weights, bias = (np.array(fields[name], dtype=np.float64) for name in ("weights", "bias"))
            overlay = cls(
                fields["tenant"],
                tuple(fields["categories"]),
                weights,
                bias,
                float(fields["gain"]),
                int(fields["requests"]),
                float(fields["fitted_until"]),
            )
            size = len(overlay.categories)
            if (weights.shape, bias.shape) != ((size, size), (size,)):
                raise ValueError(f"weights of shape {weights.shape} for {size} categories")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"overlay: cannot be read ({error!r}); delete it and retrain") from error
        return overlay


def log_posterior(posterior: NDArray[np.floating]) -> Array:
    """Return the logarithm of a posterior, bounded below by that of MIN_PROBABILITY."""
    return np.asarray(np.log(np.maximum(posterior, MIN_PROBABILITY, dtype=np.float64)))


def softmax(logits: Array) -> Array:
    """Return the softmax along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
