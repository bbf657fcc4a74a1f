"""Chooses the probes that `coe tune` scores next, and when to stop; pure functions of the scores so far."""
