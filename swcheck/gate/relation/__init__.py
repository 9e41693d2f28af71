"""How a candidate is related to its reference, before anything is judged.

``basis``: the same model, in the same basis of the residual stream or in another one; ``candidate_kind``: quantized,
fine-tuned or pruned; ``linear_maps``: how far each linear map answers off, and which a quantizer left as they were.
"""
