"""Experts behind HTTP servers: the hot path, bytes in and bytes out."""
