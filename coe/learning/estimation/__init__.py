"""Estimates quality from logged experience and feedback."""
