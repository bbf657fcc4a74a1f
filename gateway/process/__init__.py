"""Processes: workers, reload, drain, jobs and signals."""
