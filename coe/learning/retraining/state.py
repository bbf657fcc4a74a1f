"""What is remembered from one round of learning to the next, in one file that is replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from coe.artifacts.atomic_files import replace_file
from coe.errors import ArtifactError

STATE_FILE = "rounds.json"


@dataclass(frozen=True, slots=True)
class RoundState:
    """The rounds of one kind of artifact.

    `in_use` is the digest or version that the last round judged against, `judged` how often candidates were judged
    against it. `inputs` is the digest of what else that round learnt from, `feedback` the cursor up to which it read
    it. `time` (Unix seconds), `promoted`, `sentence` and `report` (a folder, or empty) are its outcome. `tested` counts
    the ratings of the last test, the latest at `tested_at`.
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


def read_round_states(artifacts: Path) -> Mapping[str, RoundState]:
    """The last rounds by kind, empty before the first. Raises ArtifactError where the file is something else."""
    path = artifacts / STATE_FILE
    try:
        return {kind: RoundState(**fields) for kind, fields in orjson.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it, and rounds are counted anew") from None


def write_round_state(artifacts: Path, kind: str, rounds: RoundState) -> None:
    """Remember the last round of a kind; for one job at a time."""
    known = {**read_round_states(artifacts), kind: rounds}
    artifacts.mkdir(parents=True, exist_ok=True)
    fields = {name: asdict(one) for name, one in known.items()}
    replace_file(artifacts / STATE_FILE, orjson.dumps(fields, option=orjson.OPT_INDENT_2))
