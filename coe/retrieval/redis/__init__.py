"""The document store in Redis 8, shared by all gateways."""
