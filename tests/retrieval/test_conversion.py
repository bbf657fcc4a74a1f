"""Files are converted to text or rejected with a reason; no file stops the run."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from coe.errors import DataError, DocumentError
from coe.retrieval.indexing import MAX_FILE_BYTES, ConvertedText, convert, find_files
from tests.retrieval.pdf_files import encrypted, pdf

pytestmark = pytest.mark.anyio
NOISE = random.Random(1).randbytes(5000)


async def converted(folder: Path, name: str, data: bytes) -> ConvertedText:
    file = folder / name
    file.write_bytes(data)
    return await convert(file)


async def test_every_format_is_converted_to_text_and_title(tmp_path: Path) -> None:
    page = (
        "<html><head><title>Leave &amp; rest</title><style>p {}</style><script>bad()</script></head>"
        "<body><nav>Home</nav><h1>Leave</h1><p>Sixteen <b>weeks</b> of <a href='http://x'>paid</a> leave_days.</p>"
    )
    found = {
        name: await converted(tmp_path, name, data)
        for name, data in {
            "a.txt": b"\xef\xbb\xbfPlain\r\ntext",
            "b.md": b"intro\n\n# The title #\n\nbody",
            "c.html": page.encode(),
            "d.pdf": pdf("Sixteen weeks.", "Second page.", title="Leave"),
        }.items()
    }
    assert found["a.txt"] == ConvertedText("Plain\ntext", "")
    assert found["b.md"].title == "The title"
    assert found["c.html"].title == "Leave & rest"
    assert found["c.html"].text.strip() == "# Leave\n\nSixteen **weeks** of paid leave_days."
    assert found["d.pdf"] == ConvertedText("Sixteen weeks.\n\nSecond page.", "Leave")


async def test_bad_files_are_rejected_with_a_reason(tmp_path: Path) -> None:
    bad = {
        "locked.pdf": (encrypted(pdf("secret"), "word"), "encrypted"),
        "broken.pdf": (pdf("x")[:80], "broken"),
        "noise.pdf": (NOISE, "broken"),
        "empty.pdf": (b"", "broken"),
        "scan.pdf": (pdf("x", content=b"q Q"), "pictures of pages"),
        "noise.txt": (NOISE, "NUL"),
        "latin.txt": ("Grüße".encode("latin-1"), "not UTF-8"),
        "nul.md": (b"a\x00b", "NUL"),
        "deep.html": (b"<div>" * 20_000, "nested too deep|MiB of memory|longer than|processor"),
    }
    for name, (data, why) in bad.items():
        with pytest.raises(DocumentError, match=why):
            await converted(tmp_path, name, data)
    assert (await converted(tmp_path, "open.pdf", encrypted(pdf("open"), ""))).text == "open"


async def test_a_decompression_bomb_only_breaks_the_child_process(tmp_path: Path) -> None:
    bomb = pdf("x", content=b"BT (" + b"a" * 120_000_000 + b") Tj ET")
    assert len(bomb) < 2**20
    with pytest.raises(DocumentError):
        await converted(tmp_path, "bomb.pdf", bomb)
    assert (await converted(tmp_path, "good.pdf", pdf("fine"))).text == "fine"


async def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "large.pdf"
    with file.open("wb") as opened:
        opened.truncate(2 * MAX_FILE_BYTES)
    with pytest.raises(DocumentError, match=r"larger than 100 MiB \(200 MiB\); split it"):
        await convert(file)
    with pytest.raises(DocumentError, match="cannot be read"):
        await convert(tmp_path / "gone.txt")


async def test_converting_a_file_times_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.html")
    with pytest.raises(DocumentError, match=r"longer than 0\.3 s"):
        await convert(tmp_path / "slow.html", max_seconds=0.3)


def test_folders_give_files_of_known_formats(tmp_path: Path) -> None:
    for name in ("a.md", "b.exe", "sub/c.HTML", "sub/.hidden.md", ".git/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    wanted = {tmp_path / "a.md": "", tmp_path / "sub" / "c.HTML": ""}
    assert find_files([str(tmp_path), str(tmp_path / "a.md")]) == wanted
    (refusal,) = find_files([str(tmp_path / "b.exe")]).values()
    assert "not a kind of file" in refusal
    with pytest.raises(DataError, match="no such file"):
        find_files([str(tmp_path / "nothing.md")])


def test_links_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.md"
    root.mkdir()
    outside.write_text("secret")
    (root / "in.md").write_text("x")
    (root / "out.md").symlink_to(outside)
    (root / "gone.md").symlink_to(root / "nothing.md")
    (root / "up").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.txt")
    assert find_files([str(root)]) == {root / "in.md": "", root / "pipe.txt": "not a file"}
    for link in ("out.md", "gone.md"):
        assert find_files([str(root / link)]) == {root / link: "it is a link; name what it points to"}
