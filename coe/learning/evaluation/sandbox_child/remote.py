"""Connects the process of the tests to the process of the answer: sends operations and decodes their results.

The tests' process (`examiner.py`) uses it. An answer fails for good if it exits the interpreter or sends anything but a
value, even if the tests catch exceptions.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from types import BuiltinFunctionType
from typing import Any

from coe.learning.evaluation.sandbox_child.answer_object import AnswerObject, number_of
from coe.learning.evaluation.sandbox_child.channel import Channel, Decoder, Encoder, MessageTooLarge

_LISTED = (KeysView, ValuesView, ItemsView)


class AnswerFailed(BaseException):
    """The answer has failed for good; no `except Exception` of the tests intercepts that."""


class TestsUnusable(TypeError):
    """The tests use an operation that does not work across processes. The answer is not at fault."""


class Remote:
    """The process of the answer. `failure` is the reason why the answer cannot pass any more; `ended` is True once its
    process has ended."""

    def __init__(self, channel: Channel) -> None:
        self.failure: str | None = None
        self.ended = False
        self._channel = channel
        self._callbacks: list[Callable[..., Any]] = []
        self._callback_numbers: dict[int, int] = {}
        self._objects: dict[int, AnswerObject] = {}
        self._error_classes: dict[int, type[Exception]] = {}
        self._error_numbers: dict[type, int] = {}

    def load(self, source: str) -> None:
        """Have the answer executed as a module. Raises AnswerFailed."""
        answer = self._exchange(["load", source])
        if answer[0] != "loaded":
            self._fail(str(answer[1]) if answer[0] == "failed" else "it sent an invalid value")

    def do(self, operation: str, *words: Any, **named: Any) -> Any:
        """Execute an operation on values and objects there. Raises what it raised, or AnswerFailed."""
        encoder = Encoder(self._foreign)
        request = ["do", operation, encoder.encode(words), encoder.encode(named)]
        message = self._exchange(request)
        while message[0] == "call":
            message = self._exchange(self._called(message))
        try:
            return self._result(operation, message, encoder.containers)
        except _Raised as raised:
            raise raised.error from None

    def _result(self, operation: str, message: Any, containers: list[Any]) -> Any:
        decoder = Decoder(self._made, containers)
        try:
            if message[0] == "left":
                value: Any = None
            else:
                kind, encoded, changes, printed = message
                value = decoder.decode(encoded)
                for number, contents in changes:
                    decoder.refill(containers[number], contents)
                sys.stdout.write(str(printed))
        except Exception:
            self._fail("it sent an invalid value")
        if message[0] == "left":
            self._fail(f"{message[1]}: {message[2]}" if len(message) > 2 and message[2] != "SystemExit" else message[1])
        if kind == "raised":
            raise _Raised(_allowed(value, operation))
        return value

    def _exchange(self, message: Any) -> Any:
        if self.failure is not None:
            raise AnswerFailed
        try:
            try:
                self._channel.send(message)
            except MessageTooLarge as error:
                raise TestsUnusable(f"the tests pass {error}") from None
            answer = self._channel.receive()
        except (EOFError, OSError):
            self.ended = True
            self._fail("it ended before its tests did")
        except ValueError as error:  # not JSON, or too large
            self._fail(f"it sent an invalid value ({error})")
        if type(answer) is not list or not answer:
            self._fail("it sent an invalid value")
        return answer

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        raise AnswerFailed

    def _called(self, message: Any) -> Any:
        """Call a function of the tests for the answer; returns the reply."""
        decoder = Decoder(self._made)
        try:
            _, number, words, named = message
            function = self._callbacks[number]
            words, named = decoder.decode(words), decoder.decode(named)
        except Exception:
            self._fail("it sent an invalid value")
        encoder = Encoder(self._foreign, decoder.containers)
        try:
            return ["value", encoder.encode(function(*words, **named))]
        except Exception as error:
            return ["raised", self._error(error, encoder)]

    # ----------------------------------------------------------------------------------------------- encoding

    def _foreign(self, value: Any, encoder: Encoder) -> Any:
        if type(value) is AnswerObject:
            return ["object", number_of(value)]
        if isinstance(value, type) and value in self._error_numbers:
            return ["object", self._error_numbers[value]]
        if isinstance(value, Exception):
            return self._error(value, encoder)
        if isinstance(value, (type, BuiltinFunctionType)) and vars(builtins).get(name := str(value.__name__)) is value:
            return ["builtin", name]
        if isinstance(value, _LISTED):
            return encoder.encode(list(value))
        if isinstance(value, Iterator):
            return ["iterator", self._callback(value, value.__next__)]
        if callable(value):
            return ["call", self._callback(value, value)]
        raise TestsUnusable(
            f"the tests pass a {type(value).__name__}, which cannot be passed to the process of the answer: pass plain "
            "values, functions, or objects that the answer made"
        )

    def _callback(self, owner: Any, function: Callable[..., Any]) -> int:
        if id(owner) not in self._callback_numbers:
            self._callback_numbers[id(owner)] = len(self._callbacks)
            self._callbacks.append(function)  # kept, so that the id stays its own
        return self._callback_numbers[id(owner)]

    def _error(self, error: Exception, encoder: Encoder) -> Any:
        kind: Any = type(error)
        while kind not in self._error_numbers and getattr(builtins, kind.__name__, None) is not kind:
            kind = kind.__base__
        words = [word for word in error.args if isinstance(word, (str, int, float))]
        return ["exception", encoder.encode(kind), words]

    # ----------------------------------------------------------------------------------------------- decoding

    def _made(self, tag: str, rest: list[Any], decoder: Decoder) -> Any:
        match tag, rest:
            case "object" | "coroutine", [int(number)]:
                if number not in self._objects:
                    self._objects[number] = AnswerObject(self, number)
                found = self._objects[number]
                return _awaited(self, found) if tag == "coroutine" else found
            case "call", [int(number)] if number >= 0:
                return self._callbacks[number]
            case "error", _:
                return self._error_class(rest)
            case "exception", [kind, words, str(text)]:
                return _exception(self._error_class(kind[1:]), [decoder.decode(word) for word in words], text)
        raise ValueError(f"not a value: {tag}")

    def _error_class(self, rest: Any) -> Any:
        """The class here for an exception class there: the built-in or imported one, or one with the same bases."""
        number, module, name, bases = rest
        known = self._error_classes.get(number)
        if known is None:
            known = _standard(str(module), str(name)) or self._new_error_class(str(name), bases)
            if number >= 0:
                self._error_classes[number], self._error_numbers[known] = known, number
        return known

    def _new_error_class(self, name: str, bases: Any) -> type[Exception]:
        found = tuple(self._error_class(base[1:]) for base in bases) or (Exception,)
        try:
            return type(name, found, {})
        except TypeError:
            return type(name, (Exception,), {})


class _Raised(Exception):
    """Carries what the answer raised."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _allowed(error: Any, operation: str) -> Exception:
    """StopIteration ends loops of the tests in silence, so it is that only from an iterator."""
    if not isinstance(error, Exception):
        return TypeError("the answer raised something that is not an exception")
    if isinstance(error, StopIteration) and operation != "next":
        return RuntimeError("the answer raised StopIteration")
    return error


def _standard(module: str, name: str) -> type[Exception] | None:
    """An exception of the standard library that is imported already."""
    if module != "builtins" and module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _exception(kind: type[Exception], words: list[Any], text: str) -> Exception:
    try:
        return kind(*words)
    except Exception:  # a constructor with another signature
        return kind.__new__(kind, text)


async def _awaited(remote: Remote, coroutine: AnswerObject) -> Any:
    return remote.do("await", coroutine)
