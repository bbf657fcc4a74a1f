"""The learning line: from records, prompts and scores to routers and assignments. Never runs in the gateway."""
