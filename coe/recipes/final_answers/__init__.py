"""The normalized final answer of a response: letters, numbers, short texts, JSON and programs in canonical form."""
