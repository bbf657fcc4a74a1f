"""Stores the state of the last learning round of each kind of artifact, in one file that is replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.errors import ArtifactError
from coe.learning.retraining.promotion import Judgement

STATE_FILE = "rounds.json"


@dataclass(frozen=True, slots=True)
class RoundState:
    """The state of the last round of one kind.

    `in_use` is the digest or version that the round judged against, and `judged` counts the candidates judged against
    it. `inputs` is the digest of the round's other inputs, `feedback` the cursor behind the feedback that it read.
    `time` (Unix seconds), `promoted`, `sentence` and `report` (a folder, or empty) are the outcome. `tested` counts the
    ratings of the last test, the latest at `tested_at`.
    """

    in_use: str
    judged: int
    inputs: str
    feedback: str
    time: float
    promoted: bool
    sentence: str
    report: str
    tested: int = 0
    tested_at: float = 0.0

    @classmethod
    def of(cls, judgement: Judgement, *, in_use: str, inputs: str, time: float) -> RoundState:
        """The state after a judgement, if nothing is promoted."""
        return cls(in_use, judgement.round_, inputs, "", time, judgement.promote, judgement.sentence, "")


def read_round_states(artifacts: Path) -> Mapping[str, RoundState]:
    """The states by kind, empty before the first round. Raises ArtifactError for a damaged file."""
    path = artifacts / STATE_FILE
    try:
        return {kind: RoundState(**fields) for kind, fields in orjson.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it, and rounds are counted anew") from None


def write_round_state(artifacts: Path, kind: str, state: RoundState) -> None:
    """Replace the state of one kind. The caller holds the job lock."""
    states = {**read_round_states(artifacts), kind: state}
    artifacts.mkdir(parents=True, exist_ok=True)
    fields = {name: asdict(one) for name, one in states.items()}
    replace_file(artifacts / STATE_FILE, orjson.dumps(fields, option=orjson.OPT_INDENT_2))
