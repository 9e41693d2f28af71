"""Read and change what happens in a forward pass of any supported model; the model is left as it was.

``architecture`` finds the decoder layers and down projections, ``observe`` records tensors of a pass, ``experts`` what
single experts read, ``intervene`` edits single weights, ``replace`` overrides whole linear maps, ``likelihood`` scores
token ids. Nothing in this folder knows which weights are super weights.
"""
