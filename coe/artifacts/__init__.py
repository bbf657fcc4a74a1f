"""Versioned artifacts: published folders, the pointers to those in use, and their mirror in Redis."""
