"""Probes with the passages a request would be given, and the file of what passages changed: gains.parquet."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.core import Encoder, Router
from coe.errors import DataError
from coe.learning.evaluation.probes import Probe
from coe.learning.retraining.gate_fit import Trials
from coe.registry.retrieval import RetrievalSpec
from coe.retrieval.insertion import marked, with_block
from coe.retrieval.passages import Retriever

GAINS = "gains.parquet"
_COLUMNS = ("prompt_id", "prompt", "model", "without", "with", "cosine", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class ProbesWithPassages:
    """A probe as it is asked with passages; the cosine of the best, NaN without any, about how many tokens they are,
    and the seconds that finding them took."""

    probe: Probe
    cosine: float
    tokens: int
    seconds: float


async def supplied(
    probes: Iterable[Probe], declared: RetrievalSpec, *, retriever: Retriever, encoder: Encoder
) -> list[ProbesWithPassages]:
    """Each probe with what the declared store has for it, as the gateway would give it with `x-coe-retrieval: on`.
    Raises RetrievalError."""
    return [await _supplied(probe, declared, retriever, encoder) for probe in probes]


async def _supplied(
    probe: Probe, declared: RetrievalSpec, retriever: Retriever, encoder: Encoder
) -> ProbesWithPassages:
    began = time.perf_counter()
    vector = encoder.encode([probe.prompt])[0]
    found = await retriever.search(probe.prompt, vector, collections=declared.collections, limit=declared.max_passages)
    seconds = time.perf_counter() - began
    like = [passage for passage in found if passage.score >= declared.min_similarity]
    block = marked(like, budget=declared.max_tokens) if like else None
    if block is None:
        return ProbesWithPassages(probe, float("nan"), 0, seconds)
    fields = with_block({"messages": list(probe.messages)}, "chat", block.text)
    assert fields is not None, "a probe ends with the user's words"
    digest = hashlib.sha256(orjson.dumps([probe.digest, block.text])).hexdigest()
    given = replace(probe, messages=tuple(fields["messages"]), digest=digest)
    return ProbesWithPassages(given, max(passage.score for passage in like), block.tokens, seconds)


Gain = tuple[ProbesWithPassages, str, float, float]
"""What was asked, the expert, its scores without and with passages."""


def write_gains(folder: Path, gains: Iterable[Gain]) -> None:
    """Replaces the file in one step."""
    import pyarrow
    from pyarrow import parquet

    rows = [
        (one.probe.prompt_id, one.probe.prompt, expert, without, with_, one.cosine, one.tokens, one.seconds)
        for one, expert, without, with_ in gains
    ]
    types = [(name, pyarrow.string() if name in _COLUMNS[:3] else pyarrow.float64()) for name in _COLUMNS]
    table = pyarrow.Table.from_pylist(
        [dict(zip(_COLUMNS, row, strict=True)) for row in rows], schema=pyarrow.schema(types)
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    draft = folder / f".{GAINS}.draft"
    draft.write_bytes(buffer.getvalue())
    draft.replace(folder / GAINS)


@dataclass(frozen=True, slots=True, eq=False)
class Gains:
    """What `coe score --retrieval both` measured: texts, experts, and the columns of `Trials`."""

    texts: tuple[str, ...]
    experts: tuple[str, ...]
    columns: dict[str, Any]

    def trials(self, router: Router, encoder: Encoder) -> Trials:
        """With what the router and the encoder see of the texts, in their order."""
        return Trials.seen(self.texts, router, encoder, experts=self.experts, **self.columns)


def read_gains(folder: Path, experts: Sequence[str]) -> Gains | None:
    """Of the declared `experts`; None where there is no such file. Raises DataError where it is another one."""
    path = folder / GAINS
    if not path.is_file():
        return None
    from pyarrow import ArrowException, parquet

    try:
        rows = [row for row in parquet.read_table(path, columns=list(_COLUMNS)).to_pylist() if row["model"] in experts]
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: not what `coe score --retrieval both` writes ({error}); score again") from None
    if not rows:
        raise DataError(f"{path}: holds no scores of the declared experts; score again")
    known = tuple(name for name in experts if any(row["model"] == name for row in rows))
    prompts = {row["prompt_id"]: row for row in rows}
    index = {prompt_id: number for number, prompt_id in enumerate(prompts)}
    scores = np.full((2, len(prompts), len(known)), np.nan)
    for row in rows:
        scores[:, index[row["prompt_id"]], known.index(row["model"])] = row["without"], row["with"]
    columns = {name: np.array([row[name] for row in prompts.values()]) for name in ("cosine", "tokens", "seconds")}
    texts = tuple(row["prompt"] for row in prompts.values())
    return Gains(texts, known, {"without": scores[0], "with_": scores[1], **columns})
