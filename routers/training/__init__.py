"""Training: from labelled prompts to a router's folder."""
