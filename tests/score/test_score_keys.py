"""A score belongs to the declaration that the expert answered by: after a change it is measured again."""

from __future__ import annotations

from typing import Any

import pytest

from coe.measuring.probes.probes import Probe
from coe.measuring.scoring_run import cell_keys
from coe.registry import ExpertSpec


def spec(**changes: Any) -> ExpertSpec:
    return ExpertSpec.model_validate({"name": "lawyer", "model": "base", "runtime": "vllm"} | changes)


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"adapter": "adapters/lawyer"}, True),
        ({"model": "other"}, True),
        ({"system_prompt": "Be brief."}, True),
        ({"prices": {"input": 1}}, False),
        ({"memory_gb": 10}, False),
    ],
)
def test_only_what_changes_the_answers_changes_the_key(changes: dict[str, Any], anew: bool) -> None:
    probe = Probe("one", (), "1 + 1?", "math", "numeric", "2", None, 0.0, "digest")
    (before,), (after,) = cell_keys([probe], spec(), None), cell_keys([probe], spec(**changes), None)
    assert (before != after) == anew
