"""Fits recipes on recorded answers, proposes new ones, and bounds what they may lose."""
