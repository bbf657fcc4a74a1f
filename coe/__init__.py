"""CoE: a Composition of Experts behind one OpenAI-compatible endpoint."""
