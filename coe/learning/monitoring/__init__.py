"""Monitors traffic: drift, alarms and new categories."""
