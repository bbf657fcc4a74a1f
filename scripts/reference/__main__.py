"""`python -m scripts.reference [--check]`."""

from __future__ import annotations

import sys

from scripts.reference import FOLDER, outdated, write


def main(arguments: list[str]) -> int:
    """Write the pages, or name those that are outdated and exit with 1."""
    if arguments == ["--check"]:
        wrong = outdated()
        for name in wrong:
            sys.stderr.write(f"{FOLDER.name}/{name} is outdated; run: make reference\n")
        return bool(wrong)
    if arguments:
        sys.stderr.write("usage: python -m scripts.reference [--check]\n")
        return 2
    write()
    return 0


sys.exit(main(sys.argv[1:]))
