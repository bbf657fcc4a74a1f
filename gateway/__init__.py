"""HTTP in, HTTP out: the chat API, its errors, and endpoints for administrators."""
