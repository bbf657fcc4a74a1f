"""Files are converted to text or rejected with a reason; no file stops the run."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coe.errors import DataError, DocumentError
from coe.retrieval.ingest.conversion import (
    FORMAT_BY_SUFFIX,
    MAX_FILE_BYTES,
    ConvertedText,
    Converter,
    RejectedFile,
    SourceFile,
    find_files,
)
from tests.retrieval.pdf_files import encrypted, pdf

pytestmark = pytest.mark.anyio
NOISE = random.Random(1).randbytes(5000)


@pytest.fixture
async def converter() -> AsyncIterator[Converter]:
    async with Converter() as converter:
        yield converter


async def converted(converter: Converter, folder: Path, name: str, data: bytes) -> ConvertedText:
    file = folder / name
    file.write_bytes(data)
    return await converter.convert(file, FORMAT_BY_SUFFIX[file.suffix])


async def test_every_format_is_converted_to_text_and_title(converter: Converter, tmp_path: Path) -> None:
    page = (
        "<html><head><title>Leave &amp; rest</title><style>p {}</style><script>bad()</script></head>"
        "<body><nav>Home</nav><h1>Leave</h1><p>Sixteen <b>weeks</b> of <a href='http://x'>paid</a> leave_days.</p>"
    )
    found = {
        name: await converted(converter, tmp_path, name, data)
        for name, data in {
            "a.txt": b"\xef\xbb\xbfPlain\r\ntext",
            "b.md": b"intro\n\n# The title #\n\nbody",
            "c.html": page.encode(),
            "d.pdf": pdf("Sixteen weeks.", "Second page.", title="Leave"),
            "e.txt": "Grüße".encode("utf-16"),
        }.items()
    }
    assert found["a.txt"] == ConvertedText("Plain\ntext", "")
    assert found["b.md"].title == "The title"
    assert found["c.html"].title == "Leave & rest"
    assert found["c.html"].text.strip() == "# Leave\n\nSixteen **weeks** of paid leave_days."
    assert found["d.pdf"] == ConvertedText("Sixteen weeks.\n\nSecond page.", "Leave")
    assert found["e.txt"].text == "Grüße"


async def test_bad_files_are_rejected_with_a_reason_and_later_files_work(converter: Converter, tmp_path: Path) -> None:
    bad = {
        "locked.pdf": (encrypted(pdf("secret"), "word"), "encrypted"),
        "broken.pdf": (pdf("x")[:80], "broken"),
        "noise.pdf": (NOISE, "broken"),
        "empty.pdf": (b"", "broken"),
        "scan.pdf": (pdf("x", content=b"q Q"), "pictures of pages"),
        "noise.txt": (NOISE, "NUL"),
        "latin.txt": ("Grüße".encode("latin-1"), "not UTF-8"),
        "nul.md": (b"a\x00b", "NUL"),
        "deep.html": (b"<div>" * 100_000, "nested too deep|MiB of memory|longer than|processor"),
    }
    for name, (data, why) in bad.items():
        with pytest.raises(DocumentError, match=why):
            await converted(converter, tmp_path, name, data)
    assert (await converted(converter, tmp_path, "open.pdf", encrypted(pdf("open"), ""))).text == "open"


async def test_a_decompression_bomb_only_breaks_the_child_process(converter: Converter, tmp_path: Path) -> None:
    bomb = pdf("x", content=b"BT (" + b"a" * 300_000_000 + b") Tj ET")
    assert len(bomb) < 2**20
    with pytest.raises(DocumentError):
        await converted(converter, tmp_path, "bomb.pdf", bomb)
    assert (await converted(converter, tmp_path, "good.pdf", pdf("fine"))).text == "fine"


async def test_a_file_that_is_too_large_is_not_opened(converter: Converter, tmp_path: Path) -> None:
    file = tmp_path / "large.pdf"
    with file.open("wb") as opened:
        opened.truncate(2 * MAX_FILE_BYTES)
    with pytest.raises(DocumentError, match=r"larger than 100 MiB \(200 MiB\); split it"):
        await converter.convert(file, "pdf")
    with pytest.raises(DocumentError, match="cannot be read"):
        await converter.convert(tmp_path / "gone.txt", "text")


async def test_converting_a_file_times_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.html")
    async with Converter(timeout=0.3) as converter:
        with pytest.raises(DocumentError, match=r"longer than 0\.3 s"):
            await converter.convert(tmp_path / "slow.html", "html")


def test_folders_and_patterns_find_files_of_known_formats(tmp_path: Path) -> None:
    for name in ("a.md", "b.exe", "sub/c.HTML", "sub/.hidden.md", ".git/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    wanted = [SourceFile(tmp_path / "a.md", "markdown"), SourceFile(tmp_path / "sub" / "c.HTML", "html")]
    assert find_files([str(tmp_path)]) == wanted
    assert find_files([f"{tmp_path}/**/*", str(tmp_path / "a.md")]) == wanted
    (rejected,) = find_files([str(tmp_path / "b.exe")])
    assert isinstance(rejected, RejectedFile)
    assert "not a kind of file" in rejected.reason
    for missing in ("nothing.md", "*.rst"):
        with pytest.raises(DataError, match=r"no such file|nothing matches"):
            find_files([str(tmp_path / missing)])


def test_links_that_leave_the_root_are_rejected(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.md"
    (root / "sub").mkdir(parents=True)
    outside.write_text("secret")
    (root / "in.md").write_text("x")
    (root / "sub" / "link.md").symlink_to(root / "in.md")
    (root / "out.md").symlink_to(outside)
    (root / "gone.md").symlink_to(root / "nothing.md")
    (root / "loop.md").symlink_to(root / "loop.md")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.txt")
    for path in (str(root), f"{root}/**/*.*"):
        reasons = {one.path.name: one.reason for one in find_files([path]) if isinstance(one, RejectedFile)}
        assert "link that leaves" in reasons["out.md"]
        assert "not a file" in reasons["pipe.txt"]
        assert {"gone.md", "loop.md"} <= set(reasons)
        assert [one.path for one in find_files([path]) if isinstance(one, SourceFile)] == [root / "in.md"]
    (named,) = find_files([str(root / "out.md")])
    assert isinstance(named, RejectedFile)
