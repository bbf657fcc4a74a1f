"""Measures experts on probes: runs, checkers, judge, sandbox and the resulting quality data."""
