"""Probes besides those that users write: shipped ones, templates, constraints on the form of an answer, and imports."""
