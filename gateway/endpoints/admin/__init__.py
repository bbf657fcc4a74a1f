"""Endpoints for administrators, as JSON: the page at `/ui/` shows what they return. Each resource has one module."""
