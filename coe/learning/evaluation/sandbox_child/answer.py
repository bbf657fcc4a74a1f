"""The sandboxed process that runs an answer: it executes operations on the answer's objects and returns the results.

The tests' process sends the operations (`remote.py`). This process has no part in the verdict: it knows neither the
tests nor the values that they expect.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import operator
import os
import sys
from collections.abc import Callable
from types import CoroutineType, ModuleType
from typing import Any

from coe.learning.evaluation.sandbox_child.channel import Channel, Decoder, Encoder, MessageTooLarge
from coe.learning.evaluation.sandbox_child.process import described, detached, one_line, reason

MAX_PRINTED_BYTES = 64 * 2**10
"""Printed text of one operation that is kept."""
_PLAIN_BASES: tuple[Any, ...] = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset)
_UNUSED_NAMES = frozenset({"__builtins__", "__loader__", "__spec__"})


def main() -> None:
    """Run the process: connect to the tests' process and serve its operations."""
    AnswerProcess(Channel(*detached())).serve()


def _plain(value: Any) -> Any:
    """A value of a subclass of a built-in type as that type; TypeError for other objects."""
    for base in _PLAIN_BASES:
        if isinstance(value, base):
            return base(value)
    raise TypeError(f"{type(value).__name__} is not a plain value")


_TAKEN_OVER = (
    *("lt", "le", "eq", "ne", "gt", "ge", "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift"),
    *("rshift", "and_", "or_", "xor", "neg", "pos", "invert", "contains", "getitem", "setitem", "delitem", "iadd"),
    *("isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "ilshift", "irshift", "iand", "ior", "ixor"),
    *("truth", "index"),
)
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _TAKEN_OVER},
    **{kind.__name__: kind for kind in (str, int, float, complex, bytes, reversed)},
    **{one.__name__: one for one in (abs, divmod, round, len, iter, next, repr, format, hash, isinstance, dir)},
    **{one.__name__: one for one in (getattr, setattr, delattr)},
    "call": lambda function, *words, **named: function(*words, **named),
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value, *error: type(value).__exit__(value, *error),
    "await": lambda value: asyncio.run(value),
    "plain": _plain,
}


class AnswerProcess:
    """Serves requests one at a time; a callback into the tests may send nested requests."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._module = ModuleType("answer")
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._callbacks: dict[int, Callback] = {}
        self._printed = _Printed()
        self._operations = {**_OPERATIONS, "global": self._global}

    def serve(self) -> None:
        sys.stdout = io.TextIOWrapper(self._printed, "utf-8", "replace", write_through=True)
        try:
            while True:
                self._send(self._reply(self._channel.receive()))
        except (EOFError, OSError):
            os._exit(0)

    def _send(self, reply: Any) -> None:
        try:
            self._channel.send(reply)
        except MessageTooLarge as error:
            self._channel.send(["raised", _type_error(str(error)), [], ""])

    def _reply(self, request: Any) -> Any:
        if request[0] == "load":
            return self._load(request[1])
        decoder = Decoder(self._made)
        words, named = decoder.decode(request[2]), decoder.decode(request[3])
        given = decoder.containers
        before = [_snapshot(container) for container in given]
        encoder = Encoder(self._foreign, given)
        try:
            try:
                outcome = ["value", encoder.encode(self._operations[request[1]](*words, **named))]
            except Exception as error:
                outcome = ["raised", self._error(error, encoder)]
            changes = [
                [number, encoder.contents(container)]
                for number, container in enumerate(given)
                if not _is_same(before[number], _snapshot(container))
            ]
        except Exception as error:  # what it gave cannot be encoded
            outcome, changes = ["raised", _type_error(described(error))], []
        except BaseException as error:
            return ["left", "the answer left the interpreter (sys.exit)", described(error)]
        return [*outcome, changes, self._printed.taken()]

    def _load(self, source: str) -> Any:
        """The answer is a module, so its `__main__` part does not run."""
        sys.modules["answer"] = self._module
        try:
            exec(compile(source, "answer", "exec", dont_inherit=True), self._module.__dict__)  # noqa: S102
        except BaseException as error:
            return ["failed", reason("answer", source, error)]
        return ["loaded"]

    def _global(self, name: str) -> Any:
        if name in _UNUSED_NAMES:
            raise KeyError(name)
        return self._module.__dict__[name]

    # ----------------------------------------------------------------------------------------------- encoding

    def _foreign(self, value: Any, encoder: Encoder) -> Any:
        if isinstance(value, Callback):
            return ["call", value.number]
        if isinstance(value, type) and issubclass(value, Exception):
            return self._error_class(value)
        if isinstance(value, Exception):
            return self._error(value, encoder)
        return ["coroutine" if type(value) is CoroutineType else "object", self._number(value)]

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # kept, so that its id stays its own
        return self._numbers[id(value)]

    def _error(self, error: Exception, encoder: Encoder) -> Any:
        try:
            words = [encoder.encode(word) for word in error.args]
        except Exception:
            words = []
        return ["exception", self._error_class(type(error)), words, one_line(described(error))]

    def _error_class(self, kind: type) -> Any:
        bases = [self._error_class(base) for base in kind.__bases__ if issubclass(base, Exception)]
        name = str(kind.__name__)[:100]
        if kind.__module__ == "builtins":
            return _builtin(kind)
        return ["error", self._number(kind), str(kind.__module__)[:100], name, bases]

    # ----------------------------------------------------------------------------------------------- decoding

    def _made(self, tag: str, rest: list[Any], decoder: Decoder) -> Any:
        if tag == "object":
            return self._objects[rest[0]]
        if tag == "builtin":
            return getattr(builtins, rest[0])
        if tag == "exception":
            return decoder.decode(rest[0])(*(decoder.decode(word) for word in rest[1]))
        callback = self._callbacks.setdefault(rest[0], Callback(rest[0], self._call))
        return callback if tag == "call" else _iterated(callback)

    def _call(self, number: int, words: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call one of the tests' functions; the tests may request operations before it returns."""
        encoder = Encoder(self._foreign)
        self._channel.send(["call", number, encoder.encode(words), encoder.encode(named)])
        while (message := self._channel.receive())[0] == "do":
            self._send(self._reply(message))
        kind, encoded = message
        value = Decoder(self._made, encoder.containers).decode(encoded)
        if kind == "raised":
            raise value
        return value


class Callback:
    """A function of the tests."""

    __slots__ = ("__weakref__", "_call", "number")

    def __init__(self, number: int, call: Callable[..., Any]) -> None:
        self.number, self._call = number, call

    def __call__(self, *words: Any, **named: Any) -> Any:
        return self._call(self.number, words, named)


def _iterated(following: Callback) -> Any:
    while True:
        try:
            item = following()
        except StopIteration:
            return
        yield item


def _type_error(text: str) -> Any:
    return ["exception", _builtin(TypeError), [one_line(text)], ""]


def _builtin(kind: type) -> Any:
    return ["error", -1, "builtins", kind.__name__, []]


def _snapshot(container: Any) -> list[Any]:
    """The items of a container; nested containers have their own numbers."""
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    return list(container)


def _is_same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(map(operator.is_, before, after))


class _Printed(io.BytesIO):
    """Keeps the first MAX_PRINTED_BYTES of the printed output."""

    def write(self, data: Any) -> int:
        room = max(MAX_PRINTED_BYTES - self.tell(), 0)
        super().write(bytes(data[:room]))
        return len(data)

    def taken(self) -> str:
        text = self.getvalue().decode("utf-8", "replace")
        self.seek(0)
        self.truncate()
        return text
