"""The history of one kind of artifact: which version was put into use when, by whom and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import orjson

from coe.artifacts.manifest import check_version
from coe.errors import ArtifactError

MAX_HISTORY_LINES = 1000
"""Newest lines that are kept."""
PromotedBy = Literal["train", "plan", "retrain", "packaged", "hand", "rollback"]


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of the pointer, at `time` (Unix seconds): from version `was` to `version`, None where none is in use."""

    time: float
    version: str | None
    was: str | None
    by: PromotedBy
    why: str


def parse_history(history: bytes) -> tuple[Promotion, ...]:
    """The moves of a history file, oldest first. Raises ValueError for a line that is not a promotion."""
    try:
        return tuple(Promotion(**orjson.loads(line)) for line in history.splitlines())
    except TypeError as error:
        raise ValueError(str(error)) from None


def checked_history(history: bytes, kind: str) -> bytes:
    """Return the history unchanged if every line is a promotion between versions. Raises ArtifactError otherwise."""
    try:
        moves = parse_history(history)
        for move in moves:
            texts = (move.by, move.why, move.version or "", move.was or "")
            if not isinstance(move.time, float | int) or not all(isinstance(text, str) for text in texts):
                raise ValueError("a field has the wrong type")
            for version in filter(None, (move.version, move.was)):
                check_version(version)
    except (ValueError, ArtifactError) as error:
        raise ArtifactError(
            f"{kind}: the shared history is damaged ({error}); promote a version to replace it"
        ) from None
    return history


def serialized_history(moves: Sequence[Promotion]) -> bytes:
    """Serialize the newest MAX_HISTORY_LINES moves, one line of JSON each."""
    return b"".join(orjson.dumps(asdict(move)) + b"\n" for move in moves[-MAX_HISTORY_LINES:])
