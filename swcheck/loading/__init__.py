"""Where a model comes from: ``engines.load`` makes a ``Loaded`` of what the user typed.

``hub`` finds the directory, ``checkpoint`` says what is wrong with it, ``huggingface`` loads it with transformers. What
engines need is here as well (``engine_request``, ``skip_option``), and the published coordinates (``published_index``).
"""
