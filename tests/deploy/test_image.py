"""`scripts/image` selects a builder. Its builders are stand-ins that print their arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "image"
TOOLS = ("bash", "basename", "dirname", "sed")
WORKS = '#!/bin/sh\n[ "$1" = info ] || echo "$(basename "$0") $*"\n'
NO_DAEMON = '#!/bin/sh\necho "Cannot connect to the Docker daemon" >&2\nexit 1\n'


def build(folder: Path, *targets: str, **builders: str) -> subprocess.CompletedProcess[str]:
    """Runs the script where only these builders are installed."""
    for name in TOOLS:
        (folder / name).symlink_to(f"/usr/bin/{name}")
    for name, text in builders.items():
        (folder / name).write_text(text.replace("/bin/sh", "/usr/bin/bash"))
        (folder / name).chmod(0o755)
    return subprocess.run(
        [SCRIPT, *targets], env={"PATH": str(folder)}, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_client_without_its_daemon_is_passed_over_for_the_next_builder(tmp_path: Path) -> None:
    done = build(tmp_path, "gateway", "jobs", docker=NO_DAEMON, buildah=WORKS)
    assert done.returncode == 0, done.stderr
    assert "docker" not in done.stdout
    assert "--target gateway --tag coe-gateway ." in done.stdout
    assert "image: coe-jobs is built with buildah" in done.stdout


def test_no_builder_that_works_is_status_77_with_the_reason(tmp_path: Path) -> None:
    done = build(tmp_path, "gateway", docker=NO_DAEMON)
    assert (done.returncode, done.stdout) == (77, "")
    assert "none of docker, podman and buildah works here" in done.stderr


def test_without_a_target_the_usage_is_printed_and_nothing_built(tmp_path: Path) -> None:
    done = build(tmp_path, podman=WORKS)
    assert (done.returncode, done.stdout) == (2, "")
    assert "scripts/image TARGET..." in done.stderr
