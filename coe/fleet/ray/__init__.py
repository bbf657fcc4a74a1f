"""Runs the expert servers on the nodes of a Ray cluster, for `coe up --executor ray`."""
