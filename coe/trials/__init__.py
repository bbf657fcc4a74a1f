"""Evidence from live traffic that may be read at any time."""
