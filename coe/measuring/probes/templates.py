"""Draws probes from templates: fresh numbers for each seed, so that no model can have learnt the answers.

A template is a probe with `draw`, which maps names to a range or a list of choices. `${...}` in its texts is an
expression of these names. Expressions are arithmetic in Python's notation and a few functions; they are interpreted
node by node, so that a probe file cannot run code.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

MAX_DRAWS = 2_000
"""Draws until `where` holds; then the template is at fault."""
_MAX_EXPONENT = 64
_MAX_BASE = 10**12
_MAX_BITS = 4_096
_MAX_CHARACTERS = 500
_PLACE = re.compile(r"\$\{([^{}]{1,400}?)(?::(0?\d{0,2}(?:\.\d{1,2})?[df]))?\}")


def _power(base: Any, exponent: Any) -> Any:
    if abs(base) > _MAX_BASE or abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"powers and combinations are limited to {_MAX_BASE:,} ** {_MAX_EXPONENT}")
    return operator.pow(base, exponent)


def _combinations(n: Any, k: Any) -> int:
    _power(0, n)  # refuses a large number
    return math.comb(n, k)


_BINARY: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.AST], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_COMPARED: Mapping[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLED: Mapping[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (abs, round, min, max)},
    **{name: getattr(math, name) for name in ("floor", "ceil", "sqrt", "exp", "log", "log10", "gcd", "lcm")},
    "comb": _combinations,
}


def drawn(row: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return a probe's row with `draw`, `let` and `where` replaced by values; the same for the same seed and id.

    Its id, where it has one, ends in the seed. Raises ValueError that names the mistake in the template.
    """
    random = Random(f"{seed}:{row.get('id', row.get('prompt'))}")  # noqa: S311  # no secret
    values = _values(row, random)
    filled: dict[str, Any] = {
        key: _filled(value, values) for key, value in row.items() if key not in ("draw", "let", "where")
    }
    if "id" in row:
        filled["id"] = f"{row['id']}-{seed}"
    return filled


def _values(row: Mapping[str, Any], random: Random) -> dict[str, Any]:
    """Return the drawn and the computed values. Raises ValueError."""
    if not isinstance(row["draw"], dict) or not row["draw"]:
        raise ValueError("`draw` must map names to [least, most], [least, most, step] or a list of texts")
    where, computed = row.get("where", "True"), row.get("let") or {}
    if not isinstance(computed, dict):
        raise ValueError("`let` must map names to expressions")
    for _ in range(MAX_DRAWS):
        values = {name: _one(name, choices, random) for name, choices in row["draw"].items()}
        for name, expression in computed.items():
            values[name] = evaluate(expression, values)
        if evaluate(where, values):
            return values
    raise ValueError(f"`where` did not hold for any of {MAX_DRAWS} draws")


def _one(name: str, choices: Any, random: Random) -> Any:
    if isinstance(choices, list) and choices and all(isinstance(one, str) for one in choices):
        return random.choice(choices)
    numbers = isinstance(choices, list) and all(type(one) in (int, float) for one in choices)
    if not numbers or len(choices) not in (2, 3) or choices[0] > choices[1] or (len(choices) == 3 and choices[2] <= 0):
        raise ValueError(f"`draw.{name}` must be [least, most], [least, most, step] or a list of texts")
    least, most, step = (*choices, 1)[:3]
    try:
        value = least + step * random.randint(0, math.floor((most - least) / step + 1e-9))
    except (ArithmeticError, ValueError):
        raise ValueError(f"`draw.{name}` has too many steps, or a number that is not finite") from None
    return round(value, 9) if isinstance(value, float) else value


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _PLACE.sub(lambda place: _shown(evaluate(place[1], values), place[2]), value)
    if isinstance(value, dict):
        return {_filled(key, values): _filled(part, values) for key, part in value.items()}
    return [_filled(part, values) for part in value] if isinstance(value, list) else value


def _shown(value: Any, form: str | None) -> str:
    try:
        return format(value, form or (".10g" if isinstance(value, float) else ""))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"cannot write {value!r} as {form!r}: {error}") from None


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """Return the value of an arithmetic expression of `values`. Raises ValueError for anything else."""
    if not isinstance(expression, str) or len(expression) > _MAX_CHARACTERS:
        raise ValueError(f"an expression of a template is text of at most {_MAX_CHARACTERS} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, values)
    except (ArithmeticError, LookupError, RecursionError, SyntaxError, TypeError) as error:
        raise ValueError(f"cannot evaluate {expression!r}: {error}") from None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() as constant):
            return constant
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = _value(node.left, values), _value(node.right, values)
            if not isinstance(left, int | float) or not isinstance(right, int | float):
                raise ValueError("only numbers can be calculated with")
            return _small(_BINARY[type(node.op)](left, right))
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_value(node.operand, values))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _CALLED:
            return _small(_CALLED[name](*(_value(part, values) for part in node.args)))
        case ast.List():
            return [_value(part, values) for part in node.elts]
        case ast.Subscript():
            return _value(node.value, values)[_value(node.slice, values)]
        case ast.BoolOp():
            parts = [bool(_value(part, values)) for part in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.Compare() if all(type(op) in _COMPARED for op in node.ops):
            sides = [_value(part, values) for part in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides, sides[1:], strict=False)
            return all(_COMPARED[type(op)](left, right) for op, left, right in pairs)
        case ast.IfExp():
            return _value(node.body if _value(node.test, values) else node.orelse, values)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed in an expression of a template")


def _small(number: Any) -> Any:
    if isinstance(number, int) and number.bit_length() > _MAX_BITS:
        raise ValueError(f"whole numbers are limited to {_MAX_BITS:,} bits")
    return number
