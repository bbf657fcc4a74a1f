"""Measures how well experts answer: probes, checkers, sandbox, judge, scoring runs and the allocation of probes."""
