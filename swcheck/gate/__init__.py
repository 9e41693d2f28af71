"""The release gate: a candidate against its reference, as assertions.

``assertions`` are the public functions; ``checks`` compare and return verdicts; ``diagnosis`` says why one is red;
``relation`` says how the two models are related; ``baseline`` stands for a reference. ``conclusion`` ends every check.
"""
