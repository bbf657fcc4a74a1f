"""`scripts/uv-install` passes pip's settings on to uv, and files that changed are refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "uv-install"
PIP = r"""#!/bin/sh
cat <<'END'
:env:.extra-index-url='\nhttps://a.test/simple\nhttps://b.test/simple'
:env:.no-index='1'
global.extra-index-url='https://c.test/simple'
global.find-links='/one\n/two'
END
"""
UV = """#!/bin/sh
echo "$UV_INDEX|$UV_FIND_LINKS|$*"
"""


def test_several_values_and_no_index_are_passed_on_and_byte_code_is_made_where_python_must_write_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("pip", PIP), ("uv", UV)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for environ, compiles in (({}, False), ({"PYTHONDONTWRITEBYTECODE": "1"}, True)):
        done = subprocess.run(
            [SCRIPT, tmp_path, "--no-deps", "some"],
            env={"PATH": os.environ["PATH"], **environ},
            capture_output=True,
            text=True,
            check=True,
        )
        index, links, words = done.stdout.strip().split("|")
        assert (index, links) == ("https://a.test/simple https://b.test/simple", "/one,/two")
        assert words.endswith("--no-index --no-deps some")
        assert ("--compile-bytecode" in words) == compiles


def wheel(folder: Path, name: str, *, requires: Iterable[str] = ()) -> str:
    """Write an empty package. Returns the digest of its wheel."""
    file = folder / f"{name}-1-py3-none-any.whl"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *(f"Requires-Dist: {one}" for one in requires)]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}-1.dist-info/METADATA", "\n".join(metadata))
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_changed_file_of_a_pinned_version_is_not_installed_beside_versions_without_digests(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (tmp_path / "venv" / "bin" / "pip").write_text("#!/bin/sh\n")  # without settings of this machine
    (tmp_path / "venv" / "bin" / "pip").chmod(0o755)
    shutil.copy(Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "uv")
    pinned = wheel(tmp_path, "pinned")
    wheel(tmp_path, "ranged")
    wheel(tmp_path, "asked", requires=("pinned", "ranged"))
    constraints = tmp_path / "constraints.txt"
    install = [SCRIPT, tmp_path / "venv", "--no-index", "--no-cache", "--find-links", tmp_path]
    for digest, status in (("0" * 64, 1), (pinned, 0)):
        constraints.write_text(f"ranged<2\npinned==1 --hash=sha256:{digest}\n")
        done = subprocess.run([*install, "--constraint", constraints, "asked"], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("Hash mismatch for `pinned==1`" in done.stderr) == bool(status)
