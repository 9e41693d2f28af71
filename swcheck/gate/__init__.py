"""The release gate: compares a candidate with its reference.

``assertions`` has the public functions. ``checks`` measure, compare and return verdicts; ``diagnosis`` finds the cause
of a red verdict and a fix; ``relation`` finds out how the two models are related; ``baseline`` keeps a reference's
measurements in a file. ``conclusion`` reports each verdict and raises a red one; ``verdict_message`` is the text of the
error.
"""
