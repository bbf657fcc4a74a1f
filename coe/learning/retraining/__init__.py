"""Rounds of learning: candidates, promotion tests and reports."""
