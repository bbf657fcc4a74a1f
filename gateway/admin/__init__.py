"""What administrators may look at and change, as JSON: the page at `/ui/` shows nothing else. One view, one module."""

from gateway.admin.described import described
from gateway.admin.routes import admin_routes

__all__ = ["admin_routes", "described"]
