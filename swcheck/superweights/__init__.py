"""Finds the super weights of a model, and measures a model under test.

``locating`` finds super weights without data. ``subject`` is a model under test, which remembers what was measured of
it. ``measurements`` has one function for each number that can be measured.
"""
