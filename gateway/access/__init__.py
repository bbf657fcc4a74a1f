"""Access control: API keys, rate limits and budgets, and protection against foreign web pages.

A process opens one `Limiter` over the store of `access.counters`. Every declaration gets its own `Access(registry,
limiter)`. A reload builds a new Access over the same limiter, so keys that stay keep their counts.
"""
