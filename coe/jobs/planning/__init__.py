"""Jobs of `coe plan`: from measured scores to a published plan, and to a fitted retrieval gate."""
