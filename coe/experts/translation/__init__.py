"""Translates the Responses and Messages APIs for servers that speak Chat Completions only.

`expert` wraps an expert. `responses_request` and `messages_request` turn a request into one of chat, `chat_answer`
reads the answer, `responses_answer` and `messages_answer` write it in the client's API. litellm's own translation of
these APIs is not used: it drops reasoning settings, refusals and fields of the request, and cannot be configured to
keep them.
"""
