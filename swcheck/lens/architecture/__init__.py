"""Where the decoder layers and the down projections of a model are.

``anatomy`` is the entry point, ``places`` what it finds. ``families`` knows the usual paths. ``tracing`` follows a short
forward pass where none of them fits, and ``structure`` holds what was found against it. Nothing else of swcheck knows a module name of a model.
"""
