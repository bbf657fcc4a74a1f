"""The state in use: the active state, promotion, consequences of the declaration, and its sync between machines."""
