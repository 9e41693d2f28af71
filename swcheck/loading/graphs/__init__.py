"""Runtimes whose program holds a graph, as ONNX Runtime and OpenVINO do: what they share, and the modules that they export.

``GraphRuntime``, ``exportable`` and ``exportable_with_cache`` are what the plugins use.
"""
