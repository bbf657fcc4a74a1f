"""The loop in a user's hands: measure, plan, train, correct, learn; fake experts of known quality."""
