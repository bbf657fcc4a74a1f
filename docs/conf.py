"""Configuration of the documentation site, which Sphinx builds with `make docs`. Everything that a page needs to be
shown is in the built folder, so the site works without a network."""

from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref

from coe import __version__

project = "CoE"
author = "The CoE authors"
release = version = __version__

extensions = ["myst_parser"]
exclude_patterns = ["**/README.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["alert", "deflist"]

html_theme = "furo"
html_title = f"CoE {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
html_theme_options = {"top_of_page_buttons": []}
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "native"


def _plain(app: Any, doctree: Any) -> None:
    """Shows links to folders and Markdown files of the repository outside docs/ as their text: the site has no page
    for them. Other files become downloads."""
    here = Path(app.srcdir, app.env.docname).parent
    for link in list(doctree.findall(pending_xref)):
        target = str(link.get("reftarget", ""))
        outside = link.get("refdomain") == "doc" and target.startswith(("..", "/"))
        if outside or (link.get("refdomain") is None and target and (here / target).is_dir()):
            link.replace_self(link.children)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", _plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
