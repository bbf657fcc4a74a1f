"""Counts the code of each room and holds it below its ceiling: `python scripts/size.py [--check | --lower]`.

`ceilings.txt` has a row for each room: the folder, its ceiling, the unit, and `now`, which a room above its ceiling
must not exceed. `--lower` writes what is there plus 3 % as `now`, if that is less; neither number ever rises. Code is
lines without blank ones, comments and docstrings. A file belongs to the room with the longest matching folder.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CEILINGS = Path(__file__).with_name("ceilings.txt")
COUNTED = ("*.py", "*.c", "*.h", "gateway/ui/*.js", "docs/*.md")
TOTAL, PACKAGES = "TOTAL", ("coe/", "gateway/", "routers/")
"""The room of all Python of the packages."""
ALLOWANCE = 1.03
_LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
_LAYOUT |= {tokenize.COMMENT}


def code_lines(path: Path) -> int:
    """Lines of code of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return sum(bool(line) and not line.startswith(("//", "/*", "*")) for line in map(str.strip, text.splitlines()))
    texts: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for place, item in enumerate(body if isinstance(body, list) else ()):
            is_text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
            documented = place or isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if is_text and documented and isinstance(item.value.value, str):  # type: ignore[attr-defined]
                texts.update(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - texts)


def sizes(ceilings: dict[str, tuple[int, str, int]]) -> Counter[str]:
    """The size of each room, in the room's unit."""
    names = subprocess.run(("git", "ls-files", *COUNTED), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: Counter[str] = Counter(dict.fromkeys(ceilings, 0))
    for name in names.splitlines():
        path = ROOT / name
        if not path.is_file() or "/vendor/" in name:
            continue
        room = max((one for one in ceilings if name.startswith(one + "/")), key=len, default=None)
        in_lines = room is not None and ceilings[room][1] == "lines"
        size = path.read_bytes().count(b"\n") if in_lines else code_lines(path)
        if room is not None:
            found[room] += size
        if name.endswith(".py") and name.startswith(PACKAGES):
            found[TOTAL] += size
    return found


def main(option: str = "") -> int:
    """Prints the sizes, or with --check what is above its ceiling."""
    rows = [line.split() for line in CEILINGS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    ceilings = {room: (int(ceiling), unit, int(now)) for room, ceiling, unit, now in rows}
    found = sizes(ceilings)
    broken = 0
    for room, (ceiling, unit, now) in ceilings.items():
        if option == "--check" and found[room] > (limit := max(ceiling, now)):
            broken += 1
            sys.stderr.write(f"check: {room}: {found[room]} lines, at most {limit}; delete something\n")
        elif not option:
            sys.stdout.write(f"{room:<16}{found[room]:>7} of {ceiling:>6} {unit}\n")
        allowed = min(now, int(found[room] * ALLOWANCE)) if found[room] > ceiling else ceiling
        ceilings[room] = (ceiling, unit, allowed)
    if option == "--lower":
        lines = [line for line in CEILINGS.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        lines += [f"{room:<16} {ceiling:>6} {unit:<5} {now:>6}" for room, (ceiling, unit, now) in ceilings.items()]
        CEILINGS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
