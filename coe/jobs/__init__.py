"""Jobs that CLI verbs run: rounds of learning, task runners, training data and files of routing records."""
