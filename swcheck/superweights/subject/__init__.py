"""A model under test: ``Subject``, which ``as_subject`` makes from the argument of an assertion.

``held_model`` keeps, frees and reloads the weights. ``memory`` keeps what was measured. ``measurement`` is the decorator
for functions of a subject whose values are remembered.
"""
