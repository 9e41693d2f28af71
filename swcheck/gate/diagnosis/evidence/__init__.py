"""What causes are found and proven with.

``damaged_candidate`` measures how many of the lost nats return when something is restored; ``reference_matrices`` are
what can be given back; ``finding`` is the result.
"""
