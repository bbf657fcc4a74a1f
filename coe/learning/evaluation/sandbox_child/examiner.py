"""The process that runs the tests and decides whether the answer passed. It sends the answer's text to the other
process and never runs it."""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from importlib import import_module
from typing import Any

from coe.learning.evaluation.sandbox_child.answer_object import AnswerModule, AnswerObject, made_by_tests
from coe.learning.evaluation.sandbox_child.channel import Channel
from coe.learning.evaluation.sandbox_child.process import detached, one_line, reason
from coe.learning.evaluation.sandbox_child.remote import AnswerFailed, Remote, TestsUnusable


def main() -> None:
    """Read the task, run it, and write the verdict as one line of JSON."""
    reading, writing = detached()
    with os.fdopen(reading, "rb") as file:
        task = json.loads(file.read())
    remote = Remote(Channel(*map(int, sys.argv[2:4])))
    verdict = examine(remote, task["answer"], task["tests"])
    os.write(writing, json.dumps(verdict).encode() + b"\n")
    os._exit(0)


def examine(remote: Remote, answer: str, tests: str) -> dict[str, Any]:
    """Run the tests on the answer. Returns `passed`, the reason `why` not, whether the tests are `unusable`, and
    whether the answer's process has `ended`."""
    unusable, why = False, ""
    try:
        remote.load(answer)
        _run(remote, tests)
    except TestsUnusable as error:
        unusable, why = True, reason("tests", tests, error)
    except BaseException as error:
        why = reason("tests", tests, error)
    why = one_line(remote.failure or why)
    return {"passed": not why, "why": why, "unusable": unusable and not remote.failure, "ended": remote.ended}


def _run(remote: Remote, tests: str) -> None:
    """Raises what the tests raise, and AnswerFailed even where they intercept it."""
    tree = ast.parse(tests)
    sys.modules["answer"] = AnswerModule(remote)
    names = Names(remote, tree)
    sys.modules["tests"] = type(sys)("tests")  # dataclasses inspect the module of a class
    exec(compile(_Constructions().visit(tree), "tests", "exec", dont_inherit=True), names)  # noqa: S102
    if remote.failure is not None:
        raise AnswerFailed


class Names(dict[str, Any]):
    """The tests' names: their own first, then Python's, then those of the answer.

    Names of Python are not the answer's to define, or one `all` could pass every test; the tests reach such an answer
    as `answer.all`. A module that the tests use without an import, as `math.pi`, is the real one for the same reason.
    """

    def __init__(self, remote: Remote, tree: ast.AST) -> None:
        super().__init__(__name__="tests", __coe_construct__=_construct)
        self._remote = remote
        owners = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        self._modules = {node.id for node in owners if isinstance(node, ast.Name)} & sys.stdlib_module_names

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        if name == "answer":
            return sys.modules["answer"]
        if name in self._modules:
            return import_module(name)
        return self._remote.do("global", name)


class _Constructions(ast.NodeTransformer):
    """Marks what the tests make by calling a capitalised name: `Vector(1, 2)`, `answer.Vector(1, 2)`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = str(getattr(node.func, "id", getattr(node.func, "attr", "")))
        if not name[:1].isupper():
            return node
        wrapped = ast.Call(ast.Name("__coe_construct__", ast.Load()), [node.func, *node.args], node.keywords)
        return ast.fix_missing_locations(ast.copy_location(wrapped, node))


def _construct(function: Any, *words: Any, **named: Any) -> Any:
    return made_by_tests(function(*words, **named), type(function) is AnswerObject)
