"""How a gateway asks the fleet for experts that take turns: the words (`wire`) and the asking side (`client`)."""

from coe.turns.client import Turns, ask_tiers, taking_turns

__all__ = ["Turns", "ask_tiers", "taking_turns"]
