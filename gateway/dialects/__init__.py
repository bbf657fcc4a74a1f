"""The chat APIs that clients speak, each reduced to what routing reads."""
