"""Endpoints for administrators, as JSON: the page at `/ui/` shows what they return. One module a resource."""
