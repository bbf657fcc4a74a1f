"""Inference engines: one module for each runtime that CoE starts, all with the Protocol of `engine.py`."""
