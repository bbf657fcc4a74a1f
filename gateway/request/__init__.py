"""The request path: eight named steps and what they use."""
