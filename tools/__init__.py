"""Recipes of the embedded models, and the generators of the figures and outputs in the documentation."""
