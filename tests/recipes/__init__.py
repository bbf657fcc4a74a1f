"""Recipes: their declaration, their calls, and requests of them."""
