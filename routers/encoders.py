"""Sentence encoders served with onnxruntime: tokenizer.json and encoder.onnx in, vectors out.

`OnnxEncoder` is the router's encoder. `DocumentEncoder` is the same network for documents and search queries; it reads
more tokens of a text than routing does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from routers.examples import TrainingSet, content_version
from routers.tokens import load_tokenizer, replace_surrogates, truncate_middle

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROUTING_TOKENS = 128
"""Maximum tokens of a text for routing, with special tokens. Latency grows with tokens. From 256 to 128 the router
loses .002 of accuracy on public prompts, from 256 to 64 .008."""
DOCUMENT_TOKENS = 256
"""Maximum tokens of a document chunk, with special tokens; MiniLM was trained on at most as many."""
CHARACTERS_PER_TOKEN = 4
"""Texts are truncated in the middle to this many characters for each token before tokenization, so that their end is
read too. About right for English."""
TEXTS_PER_BATCH = 512
"""Texts between two reports of the progress."""


class OnnxEncoder:
    """Embeds texts. Pooling is part of the network. Thread-safe.

    An embedding is the sentence vector (`dimensions`) followed by the means of the network's inner layers if it returns
    them (`width` in all); each part has unit length.

    Texts are embedded one by one, `threads` at a time. A quantised network computes one scale for its whole input, so a
    vector from a batch differs from the one in serving (cosine .993). A router trained on such vectors loses .003 of
    accuracy (docs/experiments/cascade-and-encoders.md). Batches are not faster on a CPU either."""

    def __init__(
        self,
        network: Path | bytes,
        tokenizer: Path | Tokenizer,
        *,
        threads: int = 1,
        tokens: int = ROUTING_TOKENS,
        characters: int | None = None,
    ) -> None:
        self._threads, self._tokens = threads, tokens
        self._session = open_session(network)
        self._tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        self._characters = characters or CHARACTERS_PER_TOKEN * tokens
        widths = [output.shape[1] for output in self._session.get_outputs()]
        self.dimensions: int = widths[0]
        self.width: int = sum(widths)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the texts' sentence vectors, float32 (n_texts, dimensions)."""
        return np.ascontiguousarray(self.features(texts)[:, : self.dimensions])

    def features(self, texts: Sequence[str], progress: Callable[[float], None] | None = None) -> NDArray[np.float32]:
        """Return the texts' embeddings, float32 (n_texts, width). `progress` is called with the completed share."""
        return self.embed_ids(self.tokenize(texts), progress)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, truncated, with special tokens."""
        truncated = [replace_surrogates(truncate_middle(text, characters=self._characters)) for text in texts]
        encodings = self._tokenizer.encode_batch(truncated, add_special_tokens=False)
        room = max(0, self._tokens - self._tokenizer.num_special_tokens_to_add(is_pair=False))
        for encoding in encodings:  # the tokenizer's own truncation would change it for others that share it
            encoding.truncate(room)
        return [self._tokenizer.post_process(encoding).ids for encoding in encodings]

    def embed_ids(
        self, token_ids: Sequence[Sequence[int]], progress: Callable[[float], None] | None = None
    ) -> NDArray[np.float32]:
        """As `features`, from token ids with special tokens."""
        embeddings = np.zeros((len(token_ids), self.width), dtype=np.float32)
        for start in range(0, len(token_ids), TEXTS_PER_BATCH):
            batch = token_ids[start : start + TEXTS_PER_BATCH]
            embeddings[start : start + len(batch)] = self._embed_all(batch)
            if progress:
                progress((start + len(batch)) / len(token_ids))
        return embeddings

    def _embed_all(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self._threads == 1 or len(token_ids) == 1:
            return np.concatenate([self._embed(ids) for ids in token_ids])
        with ThreadPoolExecutor(self._threads) as pool:
            return np.concatenate(list(pool.map(self._embed, token_ids)))

    def _embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        if not ids:
            return np.zeros((1, self.width), dtype=np.float32)
        return np.concatenate(self._session.run(None, {"input_ids": np.array([ids], dtype=np.int64)}), axis=1)


Support = Callable[[TrainingSet, OnnxEncoder], TrainingSet]
"""Adds texts to a training set, whose given ones stay `declared`."""


AnyEncoder = str | Callable[[Path], OnnxEncoder]
"""A folder, an installed package that contains one, a hub name, or what writes an exported encoder into a folder and
opens it, so that several routers share it."""


def open_session(network: Path | bytes, tensors: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """Open a network for one thread, with `tensors` for those that it names without data. Raises ArtifactError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if tensors:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors.values()]
        options.add_external_initializers(list(tensors), values)
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


class DocumentEncoder(OnnxEncoder):
    """The encoder in these two files, for documents and search queries.

    `digest` identifies it: it is computed from both files. Raises ArtifactError if either cannot be used.
    """

    def __init__(self, network: Path, tokenizer: Path, *, threads: int = 1) -> None:
        characters = 16 * DOCUMENT_TOKENS
        super().__init__(network, tokenizer, threads=threads, tokens=DOCUMENT_TOKENS, characters=characters)
        self.digest = content_version(network.parent, [network.name, tokenizer.name])

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return the start and end of each token in characters, without special tokens."""
        clean = [replace_surrogates(text) for text in texts]
        return [encoding.offsets for encoding in self._tokenizer.encode_batch(clean, add_special_tokens=False)]
