"""Tune a sentence encoder on labelled texts by a contrastive loss.

The loss is multiple negatives ranking (Henderson et al. 2017, arXiv 1705.00652): of all texts in a batch, an anchor
must be nearest to one of its own category. Other texts of its category are masked. Word vectors and the lower third of
the layers stay as they are, and so does the inner layer that the linear head reads from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from routers.training.export import load_model, without_progress_bars

STEPS = 150
"""Batches, however many texts there are, so that time is bounded (docs/experiments/encoder-tuning.md)."""
PAIRS = 16
"""Pairs of texts in a batch."""
MAX_TOKENS = 48
"""Tokens of a text that tuning reads. Time grows with them."""
LEARNING_RATE = 7e-5
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; it falls in the others."""
SHARPNESS = 20.0
"""Factor of the cosines in the softmax."""
FROZEN_LAYERS = 1 / 3
"""Share of the layers, from the lowest, that are not tuned."""


def tune_network(
    encoder: str,
    texts: Sequence[str],
    labels: NDArray[np.int64],
    *,
    out: Path,
    seed: int,
    threads: int,
    report: Callable[[float], None],
) -> None:
    """Tune `encoder` (a folder or a hub name) on texts and their categories, and save it to the folder `out`.

    Raises DataError if it cannot be loaded, has no layers to tune, or diverges.
    """
    import torch

    model = load_model(encoder)
    parameters = _freeze_lower_layers(model, encoder)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    pairs = _batches(labels, np.random.default_rng(seed))
    with _torch_threads(threads):
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / (WARM_UP * STEPS)) * (1 - step / STEPS)
            rows = next(pairs)
            loss = _ranking_loss(_vectors(model, [texts[row] for row in rows.ravel().tolist()]), labels[rows[0]])
            if not torch.isfinite(loss):
                raise DataError(f"encoder {encoder!r}: its tuning diverged; train without --tune-encoder")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            report((step + 1) / STEPS)
    with without_progress_bars():
        model.save(str(out), create_model_card=False)


def _freeze_lower_layers(model: Any, encoder: str) -> list[Any]:
    """Freeze the word vectors and the lower layers. Returns the other parameters."""
    import torch

    network = model.transformers_model
    if network is None:
        raise DataError(f"encoder {encoder!r}: has no transformer layers to tune; train without --tune-encoder")
    (getattr(network, "embeddings", None) or network.get_input_embeddings()).requires_grad_(False)
    count = getattr(network.config, "num_hidden_layers", 0)
    lists = [part for part in network.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count]
    for layer in lists[0][: round(FROZEN_LAYERS * count)] if lists else ():
        layer.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _batches(labels: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield batches: anchors in the first row, and in the second another text of each anchor's category."""
    groups = [rows for label in np.unique(labels) if len(rows := np.flatnonzero(labels == label)) > 1]
    while True:
        chosen = rng.integers(len(groups), size=PAIRS)
        yield np.stack([rng.choice(groups[group], 2, replace=False) for group in chosen], axis=1)


def _vectors(model: Any, texts: Sequence[str]) -> Any:
    """Return unit vectors that can be differentiated, without dropout."""
    import torch

    length = min(MAX_TOKENS, model.max_seq_length or MAX_TOKENS)
    tokens = model.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    found = model({"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]})
    return torch.nn.functional.normalize(found["sentence_embedding"], dim=1)


def _ranking_loss(vectors: Any, labels: NDArray[np.int64]) -> Any:
    """Return the mean loss of the anchors, the first half of `vectors`, whose categories are `labels`."""
    import torch

    count = len(labels)
    partners = torch.arange(count, 2 * count)
    own = torch.from_numpy(labels[:, None] == np.concatenate((labels, labels))[None])
    own[torch.arange(count), partners] = False
    similarity = (SHARPNESS * vectors[:count] @ vectors.T).masked_fill(own, -torch.inf)
    return torch.nn.functional.cross_entropy(similarity, partners)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
