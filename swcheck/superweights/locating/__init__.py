"""Finds super weights without data. ``locate`` is the entry point.

``search`` runs the rounds of the search and ``passes`` its forward passes. ``activation_rules`` decide which values are
super activations, ``attribution`` finds the weights that write one, and ``located`` is the result.
"""
