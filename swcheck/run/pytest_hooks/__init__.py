"""The hooks of the pytest plugin.

``collection`` adds the shipped suite to a run, ``reporter`` prints the results and writes files, ``stash`` keeps their
shared state in pytest's config. The fixtures are in ``swcheck.plugin``.
"""
