"""HTTP endpoints besides the chat APIs, and their OpenAPI document."""
