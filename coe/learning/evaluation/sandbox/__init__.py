"""A sandbox for code that a model wrote: runs it against its tests and returns a verdict that it cannot forge.

Two processes, each in a sandbox of its own (`isolation`): one runs the answer, the other runs the tests and decides.
The tests' process requests each operation on the answer's objects through a pipe and compares the results itself
(`sandbox_child`). docs/guides/measure-and-plan.md states what tests can rely on, and the limits.
"""

from coe.learning.evaluation.sandbox.runner import Bounds, Sandbox, Verdict

__all__ = ["Bounds", "Sandbox", "Verdict"]
