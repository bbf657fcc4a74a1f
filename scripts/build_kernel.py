"""Compiles routers/kernel/module.c, the kernel of the fast heads, with this machine's C compiler; prints what it did.

    .venv/bin/python scripts/build_kernel.py

Without a compiler, or with BUILD_KERNEL=0, there is no kernel, and the fast heads use NumPy. One file serves Python
3.11 and later, since the kernel uses the stable ABI only.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "routers/kernel/module.c"
NAME = "_kernel.abi3.so"


def build_kernel(folder: Path) -> Path | None:
    """Compile the kernel to `folder`. Returns its path, or None after printing why there is none."""
    folder.mkdir(exist_ok=True)
    (folder / NAME).unlink(missing_ok=True)
    if os.environ.get("BUILD_KERNEL") == "0":
        _report("not built, as BUILD_KERNEL=0 demands; the fast heads use NumPy")
        return None
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import BaseError, CCompilerError

    with tempfile.TemporaryDirectory() as scratch:
        extension = Extension("_kernel", [str(ROOT / SOURCE)], extra_compile_args=["-O3", "-g0"], py_limited_api=True)
        command = build_ext(Distribution({"ext_modules": [extension]}))
        command.build_lib = command.build_temp = scratch
        command.ensure_finalized()
        try:
            command.run()
            (built,) = Path(scratch).glob("_kernel*.so")
        except (BaseError, CCompilerError, OSError, ValueError) as error:
            _report(f"not built, so the fast heads use NumPy and take three times as long ({error})")
            return None
        shutil.copyfile(built, folder / f"{NAME}.new")
    (folder / f"{NAME}.new").replace(folder / NAME)  # a running gateway keeps the old file
    _report("built; the fast heads use it")
    return folder / NAME


def _report(result: str) -> None:
    sys.stdout.write(f"kernel: {result}\n")


if __name__ == "__main__":
    build_kernel(ROOT / "routers" / "kernel")
