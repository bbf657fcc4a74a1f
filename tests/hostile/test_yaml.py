"""YAML that expands, nests or runs on without end."""

from pathlib import Path

import pytest

from coe.errors import ConfigError
from coe.registry import load, yaml_source
from coe.registry.yaml_source import MAX_CHARACTERS, MAX_DEPTH, MAX_NODES

LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
LONG = f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * (MAX_CHARACTERS // 10_000))}]\n"
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{k: [{', '.join([f'*a{n - 1}'] * 10)}], <<: *a{n - 1}}}\n" for n in range(1, 10)
)
CHAINED = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} {'[' * 9}*a{n - 1}{']' * 9}\n" for n in range(1, 20))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (LAUGHS, 6, f"more than {MAX_NODES} values"),
        (LONG, 2, f"{MAX_CHARACTERS} characters or"),
        (MERGED, 6, f"more than {MAX_NODES} values"),
        (CHAINED, 9, f"or {MAX_DEPTH} levels, aliases"),
        ("a: 1\nb: &b [1, *b]\n", 2, "is inside the node that it refers to"),
        ("a: &a\n  b: *a\n", 2, "is inside the node that it refers to"),
        ("a: 1\nb: " + "[" * 100_000, 2, "nested deeper than"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(200)), 65, "nested deeper than"),
        ("a: *b\n", 1, "undefined alias"),
    ],
    ids=range(9),
)
def test_a_bomb_is_refused_with_its_line(text: str, line: int, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "experts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as refused:
        load(path, environ={})
    assert str(refused.value).startswith(f"experts.yaml:{line}: ")


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"more than the limit of {MAX_CHARACTERS}"):
        yaml_source.read(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.yaml"
    path.write_text("# x\n" * (MAX_CHARACTERS // 4 + 1))
    with pytest.raises(ConfigError, match=f"more than the limit of {MAX_CHARACTERS}"):
        yaml_source.read(path)
