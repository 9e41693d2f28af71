"""The same text as a server computes it: through a quantized cache, and a cache that loses tokens.

``eviction_beside`` and ``cache_pass`` are what the checks use.
"""
