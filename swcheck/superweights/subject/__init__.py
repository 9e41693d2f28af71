"""A model under test: ``Subject``, made by ``as_subject`` from what an assertion is given.

``held_model`` keeps, frees and reloads the weights; ``memory`` keeps what was measured; ``measurement`` makes a function
of a subject a number that is measured once.
"""
