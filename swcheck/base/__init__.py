"""The ground: records, errors, limits, tiers, and how numbers, lines and files are written.

Every other folder uses ``records`` and ``errors``. Nothing here knows a model, a file format or pytest.
"""
