"""The loop of a user with experts of known skill."""
