"""The means to find and prove a cause.

``damaged_candidate`` measures how many of the lost nats return when something is restored. ``reference_matrices`` has
the reference's matrices that can be put into the candidate. ``weight_change`` and ``worst_maps`` describe the damage.
``finding`` is the result.
"""
