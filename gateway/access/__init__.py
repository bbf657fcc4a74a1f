"""Access control: API keys, rate limits and budgets, and protection against foreign web pages.

A process opens one limiter: `async with open_limiter(registry.access.counters, home=settings.home) as limiter`. Every
declaration gets its own `Access(registry, limiter)`. A reload builds a new Access over the same limiter, so keys
that stay keep their counts.
"""
