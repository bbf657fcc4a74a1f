"""Benchmarks routing on measured quality data."""
