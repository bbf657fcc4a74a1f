"""Jobs that CLI verbs run: plans, scoring, learning rounds, training data and files of routing records."""
