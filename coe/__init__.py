"""CoE: a Composition of Experts behind one OpenAI-compatible endpoint."""

__version__ = "0.1.0"
