"""Local experts over the nodes of a Ray cluster: each server in an actor of its own, with the fleet's care."""
