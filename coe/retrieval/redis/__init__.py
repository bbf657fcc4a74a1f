"""Document store in Redis 8 or newer, with vector sets and its own inverted indexes."""
