"""Tools for the tests of others: ``conformance`` checks an engine, ``outlier`` a quantizer, ``planting`` makes models.

The public names are at the front door: ``check_engine``, ``assert_outlier_survives``, ``plant_super_weights``.
"""
