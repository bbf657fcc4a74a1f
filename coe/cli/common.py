"""Options, checks and output settings that the verbs share."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coe.settings import Settings
from coe.terminal import print_json, print_line, printable

if TYPE_CHECKING:
    from coe.registry import Registry

Config = Annotated[
    Path | None, typer.Option("--config", help="The configuration [default: COE_CONFIG or experts.yaml].")
]
File = Annotated[Path | None, typer.Argument(metavar="FILE", help="The configuration, as --config.")]
Benchmark = Annotated[str | None, typer.Option("--benchmark", help="Benchmark to use, if the folder holds several.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Judge and report, but change nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def settings_for(config: Path | None) -> Settings:
    """The process's settings, with the configuration given as --config."""
    return Settings.read(config=config)


def declaration_for(config: Path | None) -> tuple[Settings, Registry]:
    """The process's settings, and the declaration. Raises ConfigError."""
    from coe.registry import load

    settings = settings_for(config)
    return settings, load(settings.config, environ=settings.environ)


def writable_file(path: Path | None) -> Path | None:
    """Check before the work that an output file can be written after it. Raises BadParameter."""
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"folder {path.parent} does not exist; create it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written")
    return path


def keep_stdout_clean() -> None:
    """Redirect what C libraries print on standard output to standard error: HiGHS may print amid a plan's JSON."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    if sys.stdout is not sys.__stdout__:
        return  # a test or an embedding process has replaced it
    stdout = os.dup(1)
    os.dup2(2, 1)
    buffering = 1 if os.isatty(stdout) else -1
    sys.stdout = open(  # noqa: SIM115  # until the process ends
        stdout, "w", buffering, encoding=encoding, errors=errors, closefd=False
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text. Columns whose heading begins with `>` are aligned to the right; None is shown as `-`.

    Without any heading there is no line of headings.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="", show_header=any(columns))
    for name in columns:
        made.add_column(Text(name.removeprefix(">")), justify="right" if name.startswith(">") else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text("-" if cell is None else printable(str(cell))) for cell in row))
    console = Console(file=io.StringIO(), width=100_000, color_system=None)
    with console.capture() as capture:
        console.print(made)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def print_result(value: Any, lines: str | Iterable[str], *, json: bool) -> None:
    """Print the result of a verb: `value` as JSON with --json, else the lines."""
    if json:
        print_json(value)
    else:
        for line in [lines] if isinstance(lines, str) else lines:
            print_line(line)


def duration_seconds(text: str, *, option: str) -> int:
    """A duration such as 30s, 15m, 2h or 7d in seconds. Raises BadParameter, which names the option."""
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 15m", param_hint=option)
    return int(match[1]) * _UNIT_SECONDS[match[2]]
