"""The page on the `coe` command, from its parser."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from scripts.reference.markdown import code, sentence, table
from scripts.reference.sources import command

TITLE = "Command line"
ABOUT = "Every verb of `coe` with its arguments and options."

_PAGE = """\
# Command line

`coe` reads [experts.yaml](experts-yaml.md) and the [environment](environment.md). It exits with 0 on success, with 1
when something failed, and with 2 for bad usage. `coe --version` prints the version. `coe --install-completion` installs
completion for the current shell.

## Common options

Many commands have these options; their own tables name them in the last row.

{common}
{commands}"""
_SHARED = 5
"""Least number of commands whose equal option is described once."""


def page() -> str:
    """The page, in Markdown."""
    leaves = list(_commands(command(), "coe"))
    counts = Counter(row for path, leaf in leaves for row in _rows(path, leaf) if row[0].startswith("`-"))
    common = {row for row, count in counts.items() if count >= _SHARED}
    return _PAGE.format(
        common=table(("option", "meaning"), [row for row in counts if row in common]),
        commands="".join(_command(path, leaf, common) for path, leaf in leaves),
    )


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every leaf command with its full path."""
    for name, child in group.commands.items():
        words = f"{path} {name}"
        below = getattr(child, "commands", None)
        if below is None or child.invoke_without_command:
            yield words, child
        if below is not None:
            yield from _commands(child, words)


def _rows(path: str, leaf: Any) -> list[tuple[str, str]]:
    """The arguments and options of a command with their meaning, arguments first."""
    ordered = sorted(leaf.params, key=lambda parameter: parameter.param_type_name != "argument")
    with leaf.make_context(path, [], resilient_parsing=True) as context:
        return [(code(record[0]), record[1]) for one in ordered if (record := one.get_help_record(context))]


def _command(path: str, leaf: Any, common: Collection[tuple[str, str]]) -> str:
    parts = [f"\n## {path}\n", *(sentence(part) + "\n" for part in (leaf.help or "").split("\n\n"))]
    rows = _rows(path, leaf)
    own = [row for row in rows if row not in common]
    if shared := ", ".join(row[0] for row in rows if row in common):
        own.append((shared, "[Common options](#common-options)."))
    parts.append(table(("option", "meaning"), own) + "\n")
    if examples := (leaf.epilog or "").partition("Examples:\n")[2]:
        parts.append(f"```bash\n{textwrap.dedent(examples)}\n```\n")
    return "\n".join(parts)
