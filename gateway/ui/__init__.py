"""The page at `/ui/`: files alone, which ask the API for what they show with the visitor's own key."""

from gateway.ui.pages import page_routes

__all__ = ["page_routes"]
