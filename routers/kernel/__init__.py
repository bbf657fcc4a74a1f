"""The compiled kernel of the fast heads (`heads.h`) and of the reading of messages (`reading.h`), which is optional.

Without it the fast heads use NumPy and `coe.routing.units` uses Python, with the same results up to rounding, in three
and ten times the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray


class KernelTables(Protocol):
    """The tables of the fast heads, opened by the kernel; they stay in the memory of their arrays."""

    def compute(
        self, ids: bytes, bias: NDArray[np.float32], outputs: NDArray[np.float32]
    ) -> tuple[float, float, float, float]:
        """Write the outputs of the heads for a text with these token ids to `outputs`.

        `bias` are the lexical logits (n_classes,) of the text's writing systems. `outputs` gets the lexical and the
        static logits (n_classes,) and the static vector (dimensions,). Returns the cosine to the nearest centroid, the
        share of known terms, and the shares of foreign and of English function words. Raises IndexError for an id
        outside the vocabulary, ValueError for arrays of other lengths.
        """


class KernelReading(Protocol):
    """The model that classifies the units of a message, opened by the kernel."""

    def probabilities(self, units: list[Any]) -> list[tuple[float, float, float]]:
        """Return what `coe.routing.units.class_probabilities` does for 1 to 150 units. Raises UnicodeEncodeError for a
        lone surrogate."""


class Kernel(Protocol):
    """The functions of the compiled module."""

    def Reading(  # noqa: N802 (a class of the module)
        self, *, names: list[str], weights: NDArray[np.float64], bias: NDArray[np.float64], letters: bytes
    ) -> KernelReading:
        """Open a model: the `weights` (n_names, 3) of features by name, and the `bias` (3,) with the transitions
        (4, 3, 3) behind it. A name may also say that a word is in a list of words.toml, as in "questions: who".
        `letters` has a bit for each of the first 65,536 characters. Raises ValueError if the shapes do not fit."""

    def Tables(  # noqa: N802 (a class of the module)
        self,
        *,
        tokens: NDArray[np.int8],
        scales: NDArray[np.float32],
        directions: NDArray[np.float32],
        static_bias: NDArray[np.float32],
        terms: NDArray[np.uint16],
        function_words: NDArray[np.float32],
        log_counts: NDArray[np.float32],
    ) -> KernelTables:
        """Open the tables of FastHeads. Raises ValueError if the shapes do not fit each other."""

    def word_ids(self, text: str, cache: dict[str, bytes], add: Callable[[str], bytes]) -> bytes:
        """Return the token ids (int64) of an ASCII text.

        `cache` has the ids of known words; `add` returns those of other ones. Raises ValueError for other texts.
        """


def _load() -> Kernel | None:
    try:
        return cast(Kernel, import_module("routers.kernel._kernel"))
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        logging.getLogger("routers").warning("the compiled kernel cannot be loaded: %s", error)
        return None


KERNEL = _load()
"""The kernel of this installation; None without it."""
IMPLEMENTATION = "the compiled kernel" if KERNEL else "NumPy, as this installation has no compiled kernel"
"""Code that computes the fast heads, in words for the log."""
