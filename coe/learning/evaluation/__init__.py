"""Measures experts on probes: runs, checkers, judge, sandbox and the resulting quality data.

A probe is a prompt with a checker that scores the answer, not a readiness check (`coe.fleet.probe`).
"""
