"""The hooks of the pytest plugin: ``collection`` lets the shipped suite join a run, ``reporter`` says and writes results.

``stash`` is what a run of pytest keeps for them. The fixtures are in ``swcheck.plugin``.
"""
