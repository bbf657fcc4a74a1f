"""The `coe` command: one module for each verb or group of verbs, which parses, calls a job and prints.

Exits with 0, with 1 when something failed, and with 2 for bad usage. Results and errors are made printable, since file
names and answers may hold control characters.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coe import __version__
from coe.cli import (
    benchmark,
    chat,
    check,
    index,
    init,
    key,
    log,
    plan,
    promote,
    report,
    retrain,
    score,
    train,
    tune,
    up,
)
from coe.errors import CoEError, missing_package
from coe.terminal import PrintableFormatter, print_error, print_line


class PanelGroup(TyperGroup):
    """Commands whose help lists them by panel, as plain text: rich's markup would remove `[default: ...]`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel, in the order of the first command of each."""
        commands = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        limit = formatter.width - 6 - max(map(len, commands), default=0)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(limit)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


EXAMPLES: Mapping[str, Sequence[str]] = {
    "init": (
        "coe init",
        "coe init --model 'gpt-5*' --model 'anthropic/*'",
        "coe init --endpoint https://llm.example.com/v1 --key-env EXAMPLE_API_KEY",
    ),
    "check": ("coe check", "coe check draft.yaml", "coe check --live"),
    "key": ("coe key shop --tenant retail", "coe key shop --limit dollars_per_day=25"),
    "up": ("coe up", "coe up draft.yaml --port 9000"),
    "chat": ("coe chat 'What is 17 * 23?'", "coe chat --model coder 'Write a test for this function'"),
    "route": ("coe route 'Prove that 17 is prime'", "coe route --input prompts.jsonl --output decisions.jsonl"),
    "report": ("coe report", "coe report --since 90d --against large --html value.html"),
    "log": ("coe log --follow", "coe log --since 1h --outcome expert_timeout", "coe log export log.jsonl --since 7d"),
    "tune": ("coe tune --budget 2.00", "coe tune my-probes.jsonl --minutes 10 --yes"),
    "score": ("coe score --out scores", "coe score my-probes.jsonl --out scores --expert coder --judge writer"),
    "plan": ("coe plan scores", "coe plan scores --dry-run"),
    "train": ("coe train", "coe train --data prompts.jsonl"),
    "categories": ("coe categories suggest prompts.jsonl",),
    "retrain": ("coe retrain --dry-run", "coe retrain --probes scores --every 6h"),
    "corrections": ("coe corrections", "coe corrections --remove 3993bd4fc955"),
    "promote": ("coe promote router", "coe promote assignment --why 'new prices'"),
    "index": ("coe index add docs/ handbook.pdf", "coe index search 'refund policy'"),
}
"""Examples of the main verbs, for their help and the reference."""
FIRST_STEPS = """\b
First steps:
  coe init   write experts.yaml
  coe up     start the gateway
  coe chat   send a message"""


def _epilog(verb: str) -> str | None:
    """Return the examples as a block that help does not wrap."""
    return "\b\nExamples:\n  " + "\n  ".join(EXAMPLES[verb]) if verb in EXAMPLES else None


app = typer.Typer(
    cls=PanelGroup, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=FIRST_STEPS
)


def _print_version(value: bool) -> None:
    if value:
        print_line(f"coe {__version__}")
        raise typer.Exit


@app.callback()
def coe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of many models. `coe VERB --help` describes each verb."""


_PANELS: Mapping[str, Mapping[str, Callable[..., Any] | typer.Typer]] = {
    "Set up": {"init": init.init, "check": check.check, "key": key.key},
    "Run": {
        "up": up.up,
        "serve": up.serve,
        "chat": chat.chat,
        "route": chat.route,
        "status": report.status,
        "report": report.report,
        "log": log.app,
    },
    "Measure and plan": {
        "tune": tune.tune,
        "probes": score.probes,
        "score": score.score,
        "plan": plan.plan,
        "solve": plan.solve_lines,
        "benchmark": benchmark.benchmark,
    },
    "Learn": {
        "train": train.train,
        "categories": train.categories,
        "retrain": retrain.retrain,
        "corrections": retrain.corrections,
        "promote": promote.promote,
        "rollback": promote.rollback,
        "versions": promote.versions,
    },
    "Documents": {"index": index.app},
}
"""The verbs by panel of the help."""


for _panel, _verbs in _PANELS.items():
    for _name, _verb in _verbs.items():
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, name=_name, rich_help_panel=_panel, epilog=_epilog(_name))
        else:
            app.command(_name, rich_help_panel=_panel, epilog=_epilog(_name))(_verb)


def main() -> None:
    """Run the command; CoE's errors, and those of files and disks, print their message without a traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("coe", "gateway", "routers"):  # libraries log warnings only
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warns about operators that CoE does not use
    try:
        app()
    except CoEError as error:
        print_error(str(error))
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (message := missing_package(error)) is None:
            raise
        print_error(message)
        sys.exit(1)
    except OSError as error:
        print_error(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        sys.exit(1)
