"""Run the cases: python -m benchmarks.user_loop [CASE...] [--seeds N] [--data DIR]."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.user_loop import training

CASES = {"training": training.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, required=True, help="Folder with public routing data.")
    options = parser.parse_args()
    for name in options.cases:
        CASES[name](options.data, seeds=options.seeds)


if __name__ == "__main__":
    main()
