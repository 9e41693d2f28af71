"""See and touch a forward pass of any supported model, and leave it as it was.

``anatomy`` finds the layers and down projections, ``observe`` reads a pass, ``intervene`` edits single weights and
``replace`` whole maps, ``likelihood`` scores. Nothing here knows a super weight from another weight.
"""
