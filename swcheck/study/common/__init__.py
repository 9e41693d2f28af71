"""What all studies share: ``setup``, ``record`` (measurements), ``chapter`` (one study), ``surgery`` and ``plots``.

``setup`` holds model, text and seed; ``surgery`` edits a forward pass.
"""
