"""`python -m scripts.reference [--check]`: writes the pages, or names those that are outdated and exits with 1."""

from __future__ import annotations

import sys

from scripts.reference import FOLDER, outdated, write

if sys.argv[1:] == ["--check"]:
    wrong = outdated()
    sys.stderr.writelines(f"{FOLDER.name}/{name} is outdated; run: make reference\n" for name in wrong)
    sys.exit(bool(wrong))
write()
