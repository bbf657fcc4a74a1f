"""Views of administrators."""
