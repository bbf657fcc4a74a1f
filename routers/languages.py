"""The language of a text: a cheap test for texts that are not English, and the name of their language.

`is_foreign` decides from the writing systems and function words that the fast heads count anyway. Only a text that it
marks is given to `LanguageIdentifier`, so an English text costs nothing more and loads nothing.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable

import numpy as np

from coe.core import UNDETERMINED
from routers.calibration import Floats
from routers.heads.lexical import WRITING_SYSTEM_NAMES

MIN_LANGUAGE_PROBABILITY = 0.2
"""Below this the language is undetermined. 99 % of 453 own prompts in nine languages are above 0.37."""
MAX_LANGUAGE_CHARACTERS = 512
_MAIN_LANGUAGES = {"ary": "ar", "arz": "ar", "hbo": "he", "uzs": "uz", "wuu": "zh", "yue": "zh", "zxx": UNDETERMINED}
"""Varieties that a declaration of the main language includes. `zxx` is ISO 639 for text without language."""

MAX_FOREIGN_SCRIPT, MAX_UNEXPLAINED_SCRIPT = 0.25, 0.05
"""Shares of letters outside the Latin script above which a text is foreign: in any text, and in one with hardly any
English function words, such as code below a question."""
MIN_ENGLISH_WORDS, MIN_FOREIGN_EVIDENCE = 0.04, 0.02
ACCENT_WEIGHT = 2.0
"""Accented letters count this much more than foreign function words."""
_WEIGHTS = np.ones(len(WRITING_SYSTEM_NAMES), dtype=np.float32)
_WEIGHTS[WRITING_SYSTEM_NAMES.index("cjk")] = 2.0  # one character is about half a word


def is_foreign(writing_systems: Floats | None, foreign_words: float, english_words: float) -> bool:
    """Return True if a text is probably not English.

    `writing_systems` are the shares of letters as in `WritingSystems`, None for ASCII. The others are the shares of
    foreign and of English function words among the tokens.
    """
    if writing_systems is None:
        return foreign_words > max(english_words, MIN_FOREIGN_EVIDENCE)
    weighted = writing_systems * _WEIGHTS
    ascii_letters, accented = float(weighted[0]), float(weighted[1])
    total = float(weighted.sum())
    script = (total - ascii_letters - accented) / total if total else 0.0
    if script > MAX_FOREIGN_SCRIPT or (script > MAX_UNEXPLAINED_SCRIPT and english_words < MIN_ENGLISH_WORDS):
        return True
    evidence = foreign_words + accented
    return evidence > MIN_FOREIGN_EVIDENCE and foreign_words + ACCENT_WEIGHT * accented > english_words


class LanguageIdentifier:
    """Returns the ISO 639 code of a text's language, UNDETERMINED if no language is likely. Thread-safe.

    Uses py3langid (139 languages). Its model takes a second and 70 MB, and is loaded at the first call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classify: Callable[[str], tuple[str, float]] | None = None

    @staticmethod
    def is_installed() -> bool:
        return importlib.util.find_spec("py3langid") is not None

    def __call__(self, text: str) -> str:
        with self._lock:
            if self._classify is None:
                from py3langid.langid import MODEL_FILE
                from py3langid.langid import LanguageIdentifier as Model

                self._classify = Model.from_model_file(MODEL_FILE, norm_probs=True).classify
        language, probability = self._classify(text[:MAX_LANGUAGE_CHARACTERS])
        return _MAIN_LANGUAGES.get(language, language) if probability >= MIN_LANGUAGE_PROBABILITY else UNDETERMINED
