"""The built-in quantizer: ``rtn``, the engine, on the arithmetic of ``rounding``."""
