"""Proxies in the tests' process for the answer's objects: each use is an operation that the answer's process executes.

`Remote` makes the proxies and sends the operations. The answer controls the result of each operation, and nothing else.
No result alone may decide a test, so these rules apply:

- A plain value arrives as a value of the exact built-in type, and is compared here.
- Another object never equals or orders against a plain value by code of the answer.
- Its operators receive no plain value of the tests, which could be the expected one. Objects that the tests made
  themselves from a class, known by its capitalised name, are exempt.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

_MISSING = object()


class Operations(Protocol):
    """Executes operations in the process of the answer."""

    def do(self, operation: str, *words: Any, **named: Any) -> Any: ...


class AnswerObject:
    """One of the answer's objects. Attributes, calls and operators are operations in its process."""

    __slots__ = ("_coe_made_by_tests", "_coe_number", "_coe_remote")

    _coe_remote: Operations
    _coe_number: int
    _coe_made_by_tests: bool
    """True if the tests created the object from a class; its operators are then what they test."""

    def __init__(self, remote: Operations, number: int) -> None:
        for name, value in (("remote", remote), ("number", number), ("made_by_tests", False)):
            object.__setattr__(self, f"_coe_{name}", value)

    def __call__(self, *words: Any, **named: Any) -> Any:
        return self._coe_remote.do("call", self, *words, **named)

    def __getattr__(self, name: str) -> Any:
        return self._coe_remote.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._coe_remote.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._coe_remote.do("delattr", self, name)

    def __eq__(self, other: object) -> bool:
        if type(other) is AnswerObject:
            return bool(self._coe_remote.do("eq", self, other))
        plain = _plain(self)
        return NotImplemented if plain is _MISSING else plain == other

    def __hash__(self) -> int:
        return int(_checked(self._coe_remote.do("hash", self), int))

    def __bool__(self) -> bool:
        return _checked(self._coe_remote.do("truth", self), bool) is True

    def __contains__(self, item: Any) -> bool:
        if self._coe_made_by_tests or type(item) is AnswerObject:
            return _checked(self._coe_remote.do("contains", self, item), bool) is True
        return any(one is item or one == item for one in iter(self))

    def __iter__(self) -> Any:
        return self._coe_remote.do("iter", self)

    def __instancecheck__(self, instance: Any) -> bool:
        if type(instance) is not AnswerObject:
            return False
        return _checked(self._coe_remote.do("isinstance", instance, self), bool) is True

    def __enter__(self) -> Any:
        return self._coe_remote.do("enter", self)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Never suppresses the error, which may be the tests' own AssertionError."""
        if kind is None or issubclass(kind, Exception):
            self._coe_remote.do("exit", self, None if kind is None else type(error), error, None)


def number_of(one: AnswerObject) -> int:
    return one._coe_number


def _plain(one: AnswerObject) -> Any:
    """The value of an instance of a subclass of a built-in type; _MISSING for other objects."""
    try:
        value = one._coe_remote.do("plain", one)
    except Exception:
        return _MISSING
    return _MISSING if type(value) is AnswerObject else value


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"the answer's object gave no {kind.__name__}")
    return value


def _binary(operation: str, symbol: str, *, reflected: bool = False) -> Callable[..., Any]:
    def apply(self: AnswerObject, other: Any) -> Any:
        if type(other) is not AnswerObject and not self._coe_made_by_tests:
            return _by_value(self, other, operation, symbol, reflected=reflected)
        pair = (other, self) if reflected else (self, other)
        return made_by_tests(self._coe_remote.do(operation, *pair), self._coe_made_by_tests)

    return apply


def _by_value(one: AnswerObject, other: Any, operation: str, symbol: str, *, reflected: bool) -> Any:
    """The operator on plain values, here; the answer is not given the tests' value."""
    plain = _plain(one)
    if plain is _MISSING:
        raise TypeError(f"{symbol} between an object of the answer and a plain value; call a method of it by name")
    function: Any = divmod if operation == "divmod" else getattr(operator, operation)
    return function(other, plain) if reflected else function(plain, other)


def made_by_tests(value: Any, is_made: bool) -> Any:
    """Mark an object whose operators are under test."""
    if is_made and type(value) is AnswerObject:
        object.__setattr__(value, "_coe_made_by_tests", True)
    return value


def _ordered(operation: str, symbol: str) -> Callable[..., Any]:
    def compare(self: AnswerObject, other: Any) -> Any:
        if type(other) is AnswerObject:
            return _checked(self._coe_remote.do(operation, self, other), bool)
        plain = _plain(self)
        if plain is _MISSING:
            raise TypeError(f"{symbol} between an object of the answer and a plain value")
        return getattr(operator, operation)(plain, other)

    return compare


def _unary(operation: str, kind: type | None = None) -> Callable[..., Any]:
    def apply(self: AnswerObject, *words: Any) -> Any:
        value = self._coe_remote.do(operation, self, *words)
        if kind is not None:
            return _checked(value, kind)
        return made_by_tests(value, self._coe_made_by_tests)

    return apply


def _install() -> None:
    binary = {"add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//", "mod": "%"}
    binary |= {"divmod": "divmod", "pow": "**", "lshift": "<<", "rshift": ">>", "and": "&", "or": "|", "xor": "^"}
    for name, symbol in binary.items():
        operation = f"{name}_" if name in ("and", "or") else name
        setattr(AnswerObject, f"__{name}__", _binary(operation, symbol))
        setattr(AnswerObject, f"__r{name}__", _binary(operation, symbol, reflected=True))
        if name != "divmod":
            setattr(AnswerObject, f"__i{name}__", _binary(f"i{name}", f"{symbol}="))
    for name, symbol in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
        setattr(AnswerObject, f"__{name}__", _ordered(name, symbol))
    results = {"str": str, "repr": str, "format": str, "int": int, "float": float, "complex": complex, "bytes": bytes}
    for name, kind in {**results, "index": int, "len": int, "dir": list}.items():
        setattr(AnswerObject, f"__{name}__", _unary(name, kind))
    for name in ("neg", "pos", "invert", "abs", "round", "next", "reversed", "getitem", "setitem", "delitem"):
        setattr(AnswerObject, f"__{name}__", _unary(name))


_install()


class AnswerModule(ModuleType):
    """The module that `import answer` gives the tests; its names are those of the answer in the other process."""

    def __init__(self, remote: Operations) -> None:
        super().__init__("answer")
        self.__dict__["_remote"] = remote

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._remote.do("global", name)
        except KeyError:
            raise AttributeError(f"the answer has no {name}") from None
