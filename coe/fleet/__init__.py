"""The local expert servers: planned from the declared experts, started, health-checked, restarted and stopped."""
