"""Metrics, traces, logs and the observers of finished requests."""
