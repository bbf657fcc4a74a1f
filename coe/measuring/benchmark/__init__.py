"""Replays routing on recorded answers of public benchmarks (`coe benchmark`)."""
