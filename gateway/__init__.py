"""HTTP in, HTTP out: the chat API, its errors, and what operators look at."""
