"""Finding super weights without data: ``locate`` is the entry, ``activation_rules`` decide what counts.

``search`` runs the rounds, ``passes`` the forward passes, ``attribution`` goes from an activation back to its weights.
"""
