"""Local experts over the nodes of a Ray cluster, one actor per server."""
