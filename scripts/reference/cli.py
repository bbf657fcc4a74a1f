"""The page on the `coe` command, from its parser."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
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

| command | purpose |
|---|---|
{summary}
{commands}"""


def page() -> str:
    """The page, in Markdown."""
    leaves = list(_commands(command(), "coe"))
    rows = "\n".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {_summary(leaf).replace('|', chr(92) + '|')} |"
        for path, leaf in leaves
    )
    return _PAGE.format(summary=rows, commands="".join(_command(path, leaf) for path, leaf in leaves))


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every leaf command with its full path."""
    for name, child in group.commands.items():
        words = f"{path} {name}"
        below = getattr(child, "commands", None)
        if below is None or child.invoke_without_command:
            yield words, child
        if below is not None:
            yield from _commands(child, words)


def _summary(leaf: Any) -> str:
    return sentence((leaf.help or "").partition("\n\n")[0])


def _command(path: str, leaf: Any) -> str:
    with leaf.make_context(path, [], resilient_parsing=True) as context:
        usage = " ".join(leaf.collect_usage_pieces(context))
        arguments = [one.get_help_record(context) for one in leaf.params if _positional(one)]
        records = [one.get_help_record(context) for one in leaf.params if not _positional(one)]
    parts = [
        f"\n## {path}\n",
        *(sentence(part) + "\n" for part in (leaf.help or "").split("\n\n")),
        f"```text\n{path} {usage}\n```\n",
    ]
    for kind, found in (("argument", arguments), ("option", records)):
        if rows := [(code(names), text) for names, text in filter(None, found)]:
            parts.append(table((kind, "meaning"), rows) + "\n")
    if examples := (leaf.epilog or "").partition("Examples:\n")[2]:
        parts.append(f"```bash\n{textwrap.dedent(examples)}\n```\n")
    return "\n".join(parts)


def _positional(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")
