"""The loop of a user with experts of known skill: python -m benchmarks.user_loop [CASE...] [--seeds N].

The cases `corrections` and `training` need a state folder with the starter router (--home), and prompts of public data
(--data); the case `pools` reads its quality data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.user_loop import corrections, learning, measuring, pools, training, worse

CASES = {
    "corrections": lambda given: corrections.run(given.data, given.home),
    "learning": lambda given: learning.run(given.seeds),
    "measuring": lambda given: measuring.run(given.seeds),
    "pools": lambda given: pools.run(given.seeds, given.data),
    "training": lambda given: training.run(given.data, given.home, seeds=given.seeds),
    "worse": lambda given: worse.run(given.seeds),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", type=Path, help="folder of public routing data, for prompts that must not change")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the starter router")
    given = parser.parse_args()
    for name in given.cases:
        CASES[name](given)


if __name__ == "__main__":
    main()
