"""Checks the layout: no import cycles between files, at most 20 modules in a folder, at most 800 lines in a file.

Imports for type checking and imports inside functions count. Prints each violation and exits 1, or prints nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

PACKAGES = ("coe", "gateway", "routers")
MAX_LINES = 800
MAX_MODULES = 20
ROOT = Path(__file__).resolve().parent.parent


def cycle() -> list[str]:
    """Returns the modules of one import cycle, the first one repeated at the end; empty if there is none."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    sorter = TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def tracked_files(*patterns: str) -> list[Path]:
    """Returns the files of the work tree that match, without those that git ignores."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns)
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def crowded_folders() -> list[str]:
    """Returns a line for each folder of the packages with more than `MAX_MODULES` modules beside `__init__.py`."""
    modules = (path for path in tracked_files(*(f"{package}/*.py" for package in PACKAGES)))
    counts = Counter(path.parent.relative_to(ROOT) for path in modules if path.name != "__init__.py")
    return [
        f"{folder}: {count} modules, at most {MAX_MODULES}" for folder, count in counts.items() if count > MAX_MODULES
    ]


def long_files() -> list[str]:
    """Returns a line for each file with more than `MAX_LINES` lines."""
    lengths = (
        (path, len(path.read_bytes().splitlines())) for path in tracked_files("*.py", "*.js", "*.css", "*.c", "*.h")
    )
    return [
        f"{path.relative_to(ROOT)}: {lines} lines, at most {MAX_LINES}" for path, lines in lengths if lines > MAX_LINES
    ]


def main() -> int:
    """Prints every violation; returns 1 if there is one."""
    sys.path.insert(0, str(ROOT))
    found = [*crowded_folders(), *long_files()]
    if modules := cycle():
        found.append("import cycle: " + " -> ".join(modules))
    for line in found:
        sys.stderr.write(f"check: {line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
