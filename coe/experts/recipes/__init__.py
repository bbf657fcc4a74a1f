"""Experts made of experts: cascades and votes over the answers of several members."""
