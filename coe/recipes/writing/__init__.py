"""Recipes that write: a chain or fuse, whose later steps get the answers of earlier ones in their request."""
