"""The page on environment variables, from the settings of the process."""

from __future__ import annotations

import re
from functools import cache

from scripts.reference.markdown import code, sentence, table
from scripts.reference.sources import environment_table

TITLE = "Environment variables"
ABOUT = "Every variable that configures the process."

_PAGE = """\
# Environment variables

[experts.yaml](experts-yaml.md) declares what the service is. These variables configure how a process runs.

{variables}
"""


def page() -> str:
    """The page, in Markdown."""
    rows = [(", ".join(map(code, names)), sentence(meaning), code(default)) for names, meaning, default in variables()]
    return _PAGE.format(variables=table(("variable", "meaning", "default"), rows))


@cache
def names() -> frozenset[str]:
    """Every variable."""
    return frozenset(name for row, _, _ in variables() for name in row)


def variables() -> list[tuple[tuple[str, ...], str, str]]:
    """Names, meaning and default of each row of the table in the docstring of Settings."""
    rows = re.sub(r"\n[ \t]+(?=[^|\s])", " ", environment_table()).splitlines()
    cells = [
        [cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows if row.strip().startswith("|")
    ]
    return [(tuple(re.split(r",\s*", names)), meaning, default) for names, meaning, default in cells[2:]]
