"""The science: where super weights are, and what is measured of a model under test.

``locating`` finds super weights without data; ``subject`` is a model under test that remembers what was measured of it;
``measurements`` are the numbers, a function each.
"""
