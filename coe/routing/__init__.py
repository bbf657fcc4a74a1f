"""From a chat to a decision and the attempts that carry it out."""
