"""Candidates of learning rounds, and the tests that decide whether they are promoted."""
