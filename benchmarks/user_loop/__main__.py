"""The loop of a user: python -m benchmarks.user_loop [CASE...] [--data DIR] [--home DIR]."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.user_loop import corrections

CASES = {"corrections": lambda given: corrections.run(given.data, given.home)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--data", type=Path, help="folder of public routing data, for prompts that must not change")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the starter router")
    given = parser.parse_args()
    for name in given.cases:
        CASES[name](given)


if __name__ == "__main__":
    main()
