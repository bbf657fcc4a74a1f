"""Answers of the Responses API that clients refer to: by `previous_response_id`, by an item's id, or to read them.

`store` keeps them in SQLite or Redis. `conversation` puts the conversation of a request together. The
step of a request is in `gateway.request.stored_step`.
"""
