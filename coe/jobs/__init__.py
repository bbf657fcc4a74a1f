"""Jobs that CLI verbs run: plans, scoring, tuning, training data and files of routing records; `rounds` learn."""
