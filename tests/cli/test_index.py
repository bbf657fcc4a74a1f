"""`coe index` adds, lists, removes and searches documents; a repeated run changes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from coe import cli
from tests.retrieval.samples import WordEncoder

DECLARED = """\
version: 1
categories: [{name: general, description: all}]
experts: [{name: one, model: m, runtime: external, base_url: "http://127.0.0.1:1/v1"}]
assignment: {general: one}
retrieval: {store: "lancedb:///documents"}
"""


class Run:
    """The command in a folder with a declaration, over an encoder without a network."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._capsys, self._patch = folder, capsys, monkeypatch
        (folder / "experts.yaml").write_text(DECLARED)
        self.encode_with(WordEncoder())

    def encode_with(self, encoder: WordEncoder) -> None:
        from coe.artifacts import active_state

        class Artifact:
            folder = self.folder

        def check_router(settings):  # type: ignore[no-untyped-def]
            from coe.registry import load

            return load(settings.config, environ={}), Artifact

        self._patch.setattr("coe.cli.index.check_router", check_router)
        self._patch.setattr(active_state.routers, "load_document_encoder", lambda folder, threads=1: encoder)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command = ["coe", "index", *arguments, "--config", str(self.folder / "experts.yaml")]
        self._patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        captured = self._capsys.readouterr()
        self.errors = captured.err
        return captured.out


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, capsys, monkeypatch)


def test_files_are_indexed_found_and_removed(run: Run) -> None:
    docs = run.folder / "docs"
    docs.mkdir()
    (docs / "leave.md").write_text("# Leave\n\nParental leave lasts sixteen weeks.")
    (docs / "trains.html").write_text("<title>Trains</title><p>Book trains before planes.</p>")
    (docs / "bad.txt").write_bytes(b"\x00\x01")
    first = json.loads(run("add", str(docs), "--json", code=1))
    assert (first["added"], first["refused"][0]["path"]) == (2, str(docs / "bad.txt"))
    (docs / "bad.txt").unlink()
    (docs / "leave.md").write_text("# Leave\n\nParental leave lasts twenty weeks.")
    assert run("add", str(docs)) == "0 added, 1 changed, 1 unchanged (1 chunks embedded)\n"
    found = json.loads(run("search", "how long is parental leave", "--json"))
    assert (found[0]["source"], found[0]["title"]) == ("docs/leave.md", "Leave")
    assert "twenty" in found[0]["text"]
    assert run("list").splitlines()[1].split() == ["documents", "(everybody)", "2", "2"]
    assert run("list", "--documents").split() == ["docs/leave.md", "docs/trains.html"]
    assert run("remove", "docs/trains.html", "docs/none", code=1) == "1 of 2 documents removed\n"
    (docs / "leave.md").rename(docs / "new.md")
    assert "1 removed" in run("add", str(docs), "--prune")
    assert "docs/new.md" in run("search", "leave")


def test_an_index_of_another_encoder_is_refused_until_it_is_rebuilt(run: Run) -> None:
    (run.folder / "a.txt").write_text("Ants march.")
    run("add", str(run.folder / "a.txt"), "--tenant", "acme")
    run.encode_with(WordEncoder(32, "other"))
    run("search", "ants", code=1)
    assert "coe index rebuild" in run.errors
    assert run("rebuild") == "1 documents embedded\n"
    assert run("search", "ants") == ""
    assert "a.txt" in run("search", "ants", "--tenant", "acme")


def test_mistakes_are_reported_with_the_remedy(run: Run) -> None:
    assert run("search", "anything") == ""
    run("add", str(run.folder / "nothing"), code=1)
    assert "no such file or folder" in run.errors
    run("add", str(run.folder), "--collection", "no/slash", code=2)
    (run.folder / "experts.yaml").write_text(DECLARED.rpartition("retrieval")[0])
    run("list", code=1)
    assert "add: retrieval: {store: 'lancedb:///documents'}" in run.errors
