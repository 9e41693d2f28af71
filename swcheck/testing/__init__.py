"""For the tests of others: ``conformance`` checks an engine, ``outlier`` a quantizer, without a gate.

What is public of it is at the front door: ``check_engine``, ``assert_outlier_survives``.
"""
