"""`scripts/uv-install` passes pip's settings on to uv. Both are stand-ins that print what they were given."""

from __future__ import annotations

import os
import subprocess
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
