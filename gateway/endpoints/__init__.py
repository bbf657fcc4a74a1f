"""HTTP endpoints beside the chat APIs, and their OpenAPI document."""
