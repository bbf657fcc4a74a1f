"""Verbs that train, tune, retrain and promote, and those that suggest categories."""
