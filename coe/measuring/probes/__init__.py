"""Probes of users and shipped ones, and constraints on the form of an answer."""
