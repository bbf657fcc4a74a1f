"""The loop of a user with experts of known skill: python -m benchmarks.user_loop [CASE...] [--seeds N] [--data DIR]."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.user_loop import measuring, pools

CASES: dict[str, Callable[[int, Path | None], None]] = {"measuring": measuring.run, "pools": pools.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--data", type=Path, help="quality data, for the case `pools`")
    given = parser.parse_args()
    for name in given.cases or CASES:
        CASES[name](given.seeds, given.data)


if __name__ == "__main__":
    main()
