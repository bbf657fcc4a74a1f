"""Document store in Redis 8 or newer, with vector sets and inverted indexes of its own."""
