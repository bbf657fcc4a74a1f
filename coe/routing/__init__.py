"""Routes a chat: classification, the decision, and the calls to experts that carry it out."""
