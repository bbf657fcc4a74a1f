"""Jobs that CLI verbs run: rounds of learning, engines and exports."""
