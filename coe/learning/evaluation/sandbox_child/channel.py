"""The channel between the two sandboxed processes: frames of JSON, and plain Python values by exact type.

A frame is its length in four bytes, then JSON. Every received value is converted to the built-in type it declares. A
mutable container is numbered in the order of its appearance, so that one that appears again is `["same", number]`.
Everything else is passed to `foreign`, which the two processes fill in differently.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

MAX_MESSAGE_BYTES = 8 * 2**20
"""Size of one frame; larger values cannot pass between the processes."""
_LENGTH_BYTES = 4
_READ_BYTES = 65536


class MessageTooLarge(ValueError):
    """A value is too large to pass between the processes."""


class Channel:
    """A pair of pipes. `receive` raises EOFError at the end, and ValueError for bytes that are not a frame."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing

    def send(self, message: Any) -> None:
        """Raises MessageTooLarge, with nothing written, or OSError when the other process has ended."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a value of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
        left = memoryview(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
        while left:
            left = left[os.write(self._writing, left) :]

    def receive(self) -> Any:
        size = int.from_bytes(self._read(_LENGTH_BYTES), "big")
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a value of {size} bytes, more than {MAX_MESSAGE_BYTES}")
        return json.loads(self._read(size))

    def _read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            data = os.read(self._reading, min(count - len(found), _READ_BYTES))
            if not data:
                raise EOFError
            found += data
        return bytes(found)


_SAFE_INTEGER = 2**53
_UNCHANGED = (type(None), bool, str, float)
_MUTABLE: dict[type, str] = {
    list: "list",
    dict: "dict",
    defaultdict: "dict",
    set: "set",
    bytearray: "bytearray",
    deque: "deque",
    Counter: "Counter",
    OrderedDict: "OrderedDict",
}
_CREATE: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": deque,
    "Counter": Counter,
    "OrderedDict": OrderedDict,
}
_TEXTS = {  # by qualified name, so that the modules are imported only where such a value appears
    "fractions.Fraction": "",
    "decimal.Decimal": "",
    "datetime.date": "fromisoformat",
    "datetime.time": "fromisoformat",
    "datetime.datetime": "fromisoformat",
}


class Encoder:
    """Encodes the values of one message. `containers` are those that the message before it has numbered already."""

    def __init__(self, foreign: Callable[[Any, Encoder], Any], containers: Sequence[Any] = ()) -> None:
        self.containers = list(containers)
        self._foreign = foreign
        self._numbers = {id(container): number for number, container in enumerate(self.containers)}

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in _UNCHANGED:
            return value
        if kind in _MUTABLE:
            return self._container(kind, value)
        if kind is int:
            return value if abs(value) < _SAFE_INTEGER else ["int", hex(value)]
        return self._immutable(kind, value)

    def _immutable(self, kind: type, value: Any) -> Any:
        if kind is tuple or kind is frozenset:
            return [kind.__name__, self.contents(value)]
        if kind is bytes:
            return ["bytes", value.hex()]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range or kind is slice:
            return [kind.__name__, *(self.encode(part) for part in (value.start, value.stop, value.step))]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _TEXTS:
            return ["text", name, value.isoformat() if _TEXTS[name] else str(value)]
        if name == "datetime.timedelta":
            return ["timedelta", value.days, value.seconds, value.microseconds]
        return self._foreign(value, self)

    def _container(self, kind: type, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is not None:
            return ["same", number]
        self._numbers[id(value)] = len(self.containers)
        self.containers.append(value)
        return [_MUTABLE[kind], self.contents(value)]

    def contents(self, container: Any) -> Any:
        """The items of a container, encoded."""
        if isinstance(container, bytearray):
            return container.hex()
        if isinstance(container, dict):
            return [[self.encode(key), self.encode(value)] for key, value in container.items()]
        return [self.encode(item) for item in container]


class Decoder:
    """Decodes the values of one message. Raises an exception for input that `Encoder` did not produce."""

    def __init__(self, foreign: Callable[[str, list[Any], Decoder], Any], containers: Sequence[Any] = ()) -> None:
        self.containers = list(containers)
        self._foreign = foreign

    def decode(self, encoded: Any) -> Any:
        if type(encoded) in (*_UNCHANGED, int):
            return encoded
        tag, *rest = _items(encoded)
        if tag in _CREATE:
            container = _CREATE[tag]()
            self.containers.append(container)
            self.refill(container, rest[0])
            return container
        return self._immutable(tag, rest)

    def refill(self, container: Any, contents: Any) -> None:
        """Replace the items of a container."""
        if isinstance(container, bytearray):
            container[:] = bytes.fromhex(contents)
            return
        if isinstance(container, dict):
            pairs = [(self.decode(key), self.decode(value)) for key, value in map(_items, _items(contents))]
            container.clear()
            for key, value in pairs:
                container[key] = value
            return
        items = [self.decode(item) for item in _items(contents)]
        container.clear()
        container.update(items) if isinstance(container, set) else container.extend(items)

    def _immutable(self, tag: str, rest: list[Any]) -> Any:
        match tag, rest:
            case "tuple" | "frozenset", [items]:
                made = (self.decode(item) for item in _items(items))
                return tuple(made) if tag == "tuple" else frozenset(made)
            case "range" | "slice", [start, stop, step]:
                return (range if tag == "range" else slice)(*map(self.decode, (start, stop, step)))
            case "same", [int(number)] if number >= 0:
                return self.containers[number]
        return _atom(tag, rest) if tag in _ATOMS else self._foreign(tag, rest, self)


_ATOMS = ("int", "bytes", "complex", "text", "timedelta")


def _atom(tag: str, rest: list[Any]) -> Any:
    match tag, rest:
        case "int", [str(digits)]:
            return int(digits, 16)
        case "bytes", [str(digits)]:
            return bytes.fromhex(digits)
        case "complex", [float(real), float(imaginary)]:
            return complex(real, imaginary)
        case "text", [str(name), str(text)]:
            module, _, kind = name.partition(".")
            made: Any = getattr(import_module(module), kind) if name in _TEXTS else None
            return getattr(made, _TEXTS[name])(text) if _TEXTS[name] else made(text)
        case "timedelta", [int(days), int(seconds), int(microseconds)]:
            return import_module("datetime").timedelta(days, seconds, microseconds)
    raise ValueError(f"not a value: {tag}")


def _items(encoded: Any) -> list[Any]:
    if type(encoded) is not list:
        raise TypeError("not a value")
    return encoded
