"""Spans of time as people write them: 30s, 15m, 2h, 7d."""

from __future__ import annotations

import re

import typer

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str, *, option: str) -> int:
    """The span in seconds. Bad usage of `option` where it is none."""
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("write a number and s, m, h or d, such as 15m", param_hint=option)
    return int(match[1]) * _UNITS[match[2]]
