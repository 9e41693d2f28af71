"""The same text as a server computes it: through a quantized cache, a cache that loses tokens, and in other shapes.

``eviction_beside``, ``cache_pass`` and ``sweep`` are what the checks use.
"""
