"""The documentation: pages, snippets, generated reference and site."""
