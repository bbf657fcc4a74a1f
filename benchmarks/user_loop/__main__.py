"""The loop of a user with experts of known skill: python -m benchmarks.user_loop [CASE...] [--seeds N]."""

from __future__ import annotations

import argparse

from benchmarks.user_loop import learning

CASES = {"learning": learning.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    for name in given.cases or CASES:
        CASES[name](given.seeds)


if __name__ == "__main__":
    main()
