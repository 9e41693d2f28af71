"""What candidates with a known fault, or none, are made by: each function changes a copy of a model in one known way.

``swcheck.testing.candidates`` lists them by kind.
"""
