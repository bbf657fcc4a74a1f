"""Adds passages to probes as the gateway would, and stores what they change: gains.parquet.

`coe score --retrieval both` writes the file, and `coe plan` fits the retrieval gate on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coe.core import Encoder, Router
from coe.errors import DataError
from coe.measuring.gate_fit import GateExamples
from coe.measuring.probes.probes import Probe, json_digest
from coe.measuring.tables import read_table, write_parquet
from coe.registry.sections import RetrievalSpec
from coe.retrieval.insertion import format_passages, insert_block
from coe.retrieval.passages import Retriever

GAINS_FILE = "gains.parquet"
_COLUMNS = ("prompt_id", "prompt", "model", "without", "with", "cosine", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class ProbeWithPassages:
    """A probe with passages added.

    `cosine` is that of the best passage, NaN without any; `tokens` is their estimated size, `seconds` the search time.
    """

    probe: Probe
    cosine: float
    tokens: int
    seconds: float


async def add_passages(
    probes: Iterable[Probe], declared: RetrievalSpec, *, retriever: Retriever, encoder: Encoder
) -> list[ProbeWithPassages]:
    """Each probe with passages of the declared store, as the gateway adds them under `x-coe-retrieval: on`.

    Raises RetrievalError.
    """
    found = []
    for probe in probes:
        began = time.perf_counter()
        vector = encoder.encode([probe.prompt])[0]
        passages = await retriever.search(
            probe.prompt, vector, collections=declared.collections, limit=declared.max_passages
        )
        seconds = time.perf_counter() - began
        similar = [passage for passage in passages if passage.score >= declared.min_similarity]
        block = format_passages(similar, budget=declared.max_tokens) if similar else None
        if block is None:
            found.append(ProbeWithPassages(probe, float("nan"), 0, seconds))
            continue
        fields = insert_block({"messages": list(probe.messages)}, "chat", block.text)
        assert fields is not None, "a probe ends with the user's words"
        digest = json_digest([probe.digest, block.text])
        given = replace(probe, messages=tuple(fields["messages"]), digest=digest)
        found.append(ProbeWithPassages(given, max(passage.score for passage in similar), block.tokens, seconds))
    return found


Gain = tuple[ProbeWithPassages, str, float | None, float | None]
"""The probe, the expert, and its scores without and with passages."""


def write_gains(folder: Path, gains: Iterable[Gain]) -> None:
    """Replace the file atomically."""
    rows = (
        (one.probe.prompt_id, one.probe.prompt, expert, without, with_, one.cosine, one.tokens, one.seconds)
        for one, expert, without, with_ in gains
    )
    write_parquet(folder / GAINS_FILE, [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


def read_gains(folder: Path, experts: Sequence[str]) -> Callable[[Router, Encoder], GateExamples] | None:
    """The measurements of the declared `experts`, as a function of the router and the encoder in use.

    None without the file. Raises DataError for a damaged file.
    """
    path = folder / GAINS_FILE
    if not path.is_file():
        return None
    table = read_table(path, needed=_COLUMNS)
    pairs = list(zip(table.texts("prompt_id"), table.texts("model"), strict=True))
    ids = list(dict.fromkeys(prompt_id for prompt_id, name in pairs if name in experts))
    if not ids:
        raise DataError(f"{path}: holds no scores of the declared experts; score again")
    known = tuple(name for name in experts if name in {name for _, name in pairs})
    rows, prompts, models = table.cells(ids, known)
    scores = np.full((2, len(ids), len(known)), np.nan)
    scores[:, prompts, models] = [np.array(table.numbers(name))[rows] for name in ("without", "with")]
    first = rows[np.unique(prompts, return_index=True)[1]]
    columns: dict[str, Any] = {name: np.array(table.numbers(name))[first] for name in ("cosine", "tokens", "seconds")}
    texts = tuple(np.array(table.texts("prompt"), dtype=object)[first])
    return partial(GateExamples.from_texts, texts, experts=known, without=scores[0], with_=scores[1], **columns)
