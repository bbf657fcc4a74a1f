"""Configuration of the documentation site, which Sphinx builds with `make docs`. Everything that a page needs to be
shown is in the built folder, so the site works without a network."""

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

project = "CoE"
author = "The CoE authors"
release = version = version_of("coe")

extensions = ["myst_parser"]
exclude_patterns = ["**/README.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["alert", "deflist"]

html_theme = "furo"
html_title = f"CoE {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "native"


def _folder(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Shows a link to a folder of the repository as its text: a site has no page for a folder."""
    target = ROOT / "docs" / Path(node.get("refdoc", "")).parent / str(node.get("reftarget", ""))
    return content if node.get("refdomain") is None and target.is_dir() else None


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("missing-reference", _folder)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
