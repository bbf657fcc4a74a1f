"""From a chat to a decision, and the calls to experts that carry it out."""
