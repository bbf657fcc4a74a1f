"""What administrators may look at and change, as JSON: the page at `/ui/` shows nothing else. One view, one module."""

from gateway.endpoints.admin.openapi import described
from gateway.endpoints.admin.routes import admin_routes

__all__ = ["admin_routes", "described"]
