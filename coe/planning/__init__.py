"""The category-to-expert mapping: the assignment that `decide()` follows and the exact plan that finds it."""
