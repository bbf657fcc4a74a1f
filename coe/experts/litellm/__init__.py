"""Experts behind litellm: every provider that has no OpenAI-compatible or Anthropic API."""
