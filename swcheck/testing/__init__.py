"""Tools for the tests of others: ``conformance`` checks an engine, ``outlier`` a quantizer. Neither needs a gate.

The public names are at the front door: ``check_engine``, ``assert_outlier_survives``.
"""
