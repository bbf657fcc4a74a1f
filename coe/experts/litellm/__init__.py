"""Experts through litellm, for every other provider."""
