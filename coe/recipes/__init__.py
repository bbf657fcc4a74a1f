"""Experts made of experts: cascades, votes, chains and fuses over the answers of several members."""
