"""Load models: ``engines.load`` turns the name that a user typed into a ``Loaded``.

``hub`` finds the directory, ``checkpoint`` validates its files, ``huggingface`` loads it with transformers. Also here:
helpers for engines (``engine_request``, ``skip_option``), what a quantization config means (``scheme_from_config``,
``spec_from_config``), and the published coordinates of super weights (``published_index``).
"""
