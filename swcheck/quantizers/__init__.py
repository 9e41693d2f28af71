"""The built-in quantizer: ``rtn`` is the engine, ``rounding`` its arithmetic."""
