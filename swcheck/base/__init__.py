"""The lowest folder: records, errors, limits, tiers, statistics, and the formatting of numbers, lines and files.

Every other folder uses ``records`` and ``errors``. Nothing here depends on a model, a checkpoint format or pytest.
"""
