"""A sentence encoder served from ONNX: tokenizer.json and encoder.onnx in, vectors out.

The router's sentence encoder for documents and questions about them: it reads more of a text than routing does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from routers.tokens import load_tokenizer, replace_surrogates, truncate_middle
from routers.training.parallel import LocalRunner, TaskRunner

if TYPE_CHECKING:
    from tokenizers import Tokenizer
import hashlib
from typing import TYPE_CHECKING

ROUTING_TOKENS = 128
"""Texts are cut to this many tokens, special tokens included, since the network's time grows with them. From 256 to 128
the router loses .002 of accuracy on public prompts, to 64 .008."""
CHARACTERS_PER_TOKEN = 4
"""A text is cut to so many before tokenization, so that its tail is read too; about right for English."""
TEXTS_PER_TASK = 512
"""Texts that are handed over together: where work runs elsewhere, the network is loaded anew for each group."""


class OnnxEncoder:
    """Texts to vectors, pooled inside the network. Thread-safe; pickled with its network to run elsewhere.

    A *reading* of a text is its sentence vector (`dimensions`) and, beside it, the means of inner layers where the
    network gives them (`width` in all), each of unit length.

    Each text is embedded alone, `threads` of them at a time. A quantised network scales all that it is given at once,
    so a vector computed among other texts is not the one that serving sees (cosine .993), and a router that is trained
    on such loses .003 of accuracy (docs/experiments/quantisation.md). Nor is a batch faster on a CPU.
    """

    def __init__(
        self,
        network: Path | bytes,
        tokenizer: Tokenizer,
        *,
        threads: int = 1,
        tokens: int = ROUTING_TOKENS,
        characters: int | None = None,
        work: TaskRunner | None = None,
    ) -> None:
        self._network, self._work = network, work or LocalRunner()
        self._threads, self._tokens = threads, tokens
        self._session = _session(network)
        self._tokenizer = tokenizer
        self._characters = characters or CHARACTERS_PER_TOKEN * tokens
        self._masked = len(self._session.get_inputs()) > 1  # networks of before could take padded batches
        widths = [output.shape[1] for output in self._session.get_outputs()]
        self.dimensions: int = widths[0]
        self.width: int = sum(widths)

    @classmethod
    def load(
        cls,
        network: Path,
        tokenizer: Path,
        *,
        threads: int = 1,
        tokens: int = ROUTING_TOKENS,
        characters: int | None = None,
        work: TaskRunner | None = None,
    ) -> OnnxEncoder:
        """Raises ArtifactError when either file cannot be used."""
        found = load_tokenizer(tokenizer)
        return cls(network, found, threads=threads, tokens=tokens, characters=characters, work=work)

    def __reduce__(self) -> tuple[object, ...]:
        network = self._network.read_bytes() if isinstance(self._network, Path) else self._network
        return _revived, (network, self._tokenizer, self._threads, self._tokens, self._characters)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors, shape (n_texts, dimensions), float32."""
        return np.ascontiguousarray(self.read(texts)[:, : self.dimensions])

    def read(self, texts: Sequence[str], progress: Callable[[float], None] | None = None) -> NDArray[np.float32]:
        """Readings of the texts, shape (n_texts, width), float32."""
        return self.read_ids(self.tokenize(texts), progress)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, cut, special tokens included."""
        shown = [replace_surrogates(truncate_middle(text, characters=self._characters)) for text in texts]
        encodings = self._tokenizer.encode_batch(shown, add_special_tokens=False)
        room = max(0, self._tokens - self._tokenizer.num_special_tokens_to_add(is_pair=False))
        for encoding in encodings:  # not by the tokenizer, which others may share
            encoding.truncate(room)
        return [self._tokenizer.post_process(encoding).ids for encoding in encodings]

    def read_ids(
        self, tokens: Sequence[Sequence[int]], progress: Callable[[float], None] | None = None
    ) -> NDArray[np.float32]:
        """As `read`, from token ids (special tokens included)."""
        embeddings = np.zeros((len(tokens), self.width), dtype=np.float32)
        groups = [tokens[start : start + TEXTS_PER_TASK] for start in range(0, len(tokens), TEXTS_PER_TASK)]
        done = 0
        for found in self._work.map(self._run_all, groups):
            embeddings[done : done + len(found)] = found
            done += len(found)
            if progress:
                progress(done / len(tokens))
        return embeddings

    def _run_all(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self._threads == 1 or len(texts) == 1:
            return np.concatenate([self._run(tokens) for tokens in texts])
        with ThreadPoolExecutor(self._threads) as pool:
            return np.concatenate(list(pool.map(self._run, texts)))

    def _run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if not tokens:
            return np.zeros((1, self.width), dtype=np.float32)
        ids = np.array([tokens], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)} if self._masked else {"input_ids": ids}
        return np.concatenate(self._session.run(None, feed), axis=1)


def _revived(network: bytes, tokenizer: Tokenizer, threads: int, tokens: int, characters: int) -> OnnxEncoder:
    return OnnxEncoder(network, tokenizer, threads=threads, tokens=tokens, characters=characters)


def _session(network: Path | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(network, Path) and not network.is_file():
        raise ArtifactError(f"{network}: missing; train the router again or name its folder")
    try:
        return onnxruntime.InferenceSession(
            network if isinstance(network, bytes) else str(network),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # its kernel takes five times as long as the two it replaces
        )
    except Exception as error:  # onnxruntime's own errors share no base
        name = network if isinstance(network, Path) else "the network"
        raise ArtifactError(f"{name}: not a usable network ({error}); train the router again") from error


DOCUMENT_TOKENS = 256
"""Of a text that are read, special tokens included; MiniLM was trained on no longer ones."""


class DocumentEncoder:
    """A coe.core.Encoder with its tokenizer. Thread-safe.

    `digest` tells encoders apart: of the network's and the tokenizer's files.
    """

    def __init__(self, encoder: OnnxEncoder, tokenizer: Tokenizer, *, digest: str) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self.dimensions = encoder.dimensions
        self.digest = digest

    @classmethod
    def load(cls, network: Path, tokenizer: Path, *, threads: int = 1) -> DocumentEncoder:
        """Raises ArtifactError when either file cannot be used."""
        found = load_tokenizer(tokenizer)
        encoder = OnnxEncoder(network, found, threads=threads, tokens=DOCUMENT_TOKENS, characters=16 * DOCUMENT_TOKENS)
        return cls(encoder, found, digest=_digest(network, tokenizer))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n_texts, dimensions)."""
        return self._encoder.encode(texts)

    def read(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Their readings, as a router takes them, float32 (n_texts, width)."""
        return self._encoder.read(texts)

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, in characters; special tokens left out."""
        shown = [replace_surrogates(text) for text in texts]
        return [encoding.offsets for encoding in self._tokenizer.encode_batch(shown, add_special_tokens=False)]


def _digest(*files: Path) -> str:
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:16]
