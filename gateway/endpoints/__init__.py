"""HTTP endpoints besides the chat APIs, the table of all routes, and the OpenAPI document."""
