"""How a candidate is related to its reference; this is found out before any check compares them.

``basis``: whether they come from the same base model, and share the basis of the residual stream. ``candidate_kind``:
whether the candidate was quantized, fine-tuned or pruned. ``linear_maps``: how far the output of each linear map
differs, and which maps a quantizer left unchanged.
"""
