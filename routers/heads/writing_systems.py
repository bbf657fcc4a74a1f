"""Writing systems and function words: language features that an English encoder lacks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WRITING_SYSTEM_NAMES = (
    "ascii",
    "latin",
    "greek",
    "cyrillic",
    "hebrew",
    "arabic",
    "indic",
    "thai",
    "hangul",
    "cjk",
    "kana",
    "other",
)
_RANGES = {  # first and last code point, https://www.unicode.org/charts/
    "ascii": [(0x41, 0x5A), (0x61, 0x7A)],
    "latin": [(0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x300, 0x36F), (0x1E00, 0x1EFF)],
    "greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "cyrillic": [(0x400, 0x52F)],
    "hebrew": [(0x590, 0x5FF)],
    "arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)],
    "indic": [(0x900, 0xDFF)],
    "thai": [(0xE00, 0xEFF)],
    "hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
    "cjk": [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)],
    "kana": [(0x3040, 0x30FF)],
    "other": [(0x530, 0x58F), (0x10A0, 0x10FF), (0x1200, 0x139F), (0x1780, 0x17FF)],
}

FOREIGN_WORDS = """
    el la los las del una que por para como es en un se su mas pero qué más cómo
    le les des du et est une dans pour qui sur avec pas ce cette je vous nous au aux quel
    der das und ist ein eine nicht mit von zu dem des für auf wie ich sie wir im zum zur
    il lo gli della di che non sono nel alla è os um uma não nao em da na
    het een niet voor ik je wat hoe och att det som är jag inte på med
    bir ve bu için icin ne mi nasıl ile si nu cu din este pe un în sau
    ang ng mga sa yang dan itu dengan untuk apa jest nie że się jak
"""
"""Function words of Spanish, French, German, Italian, Portuguese, Dutch, Swedish, Turkish, Romanian and others, without
those that are common in English too."""

ENGLISH_WORDS = """
    the of and to in is that it for was on are with as at be by this from or what which how who when where why
    a an i you my me can do does did if there their have has will would not please your its
"""


def _table() -> NDArray[np.int8]:
    table = np.full(0x10000, -1, dtype=np.int8)
    for index, name in enumerate(WRITING_SYSTEM_NAMES):
        for first, last in _RANGES[name]:
            table[first : last + 1] = index
    return table


class WritingSystems:
    """Computes the shares of a text's letters by writing system, float32 (len(WRITING_SYSTEM_NAMES),).

    The shares sum to 1, or are all zero for a text without letters.
    """

    def __init__(self) -> None:
        self._table = _table()
        self._ascii = np.zeros(len(WRITING_SYSTEM_NAMES), dtype=np.float32)
        self._ascii[0] = 1.0

    def __call__(self, text: str) -> NDArray[np.float32]:
        if text.isascii():
            return self._ascii
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = self._table[np.minimum(points, 0xFFFF)]
        counts = np.bincount(found[found >= 0], minlength=len(WRITING_SYSTEM_NAMES)).astype(np.float32)
        return counts / max(1.0, float(counts.sum()))
