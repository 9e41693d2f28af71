"""A reference's measurements in one small file, so that a gate need not load the reference.

``measure`` takes all that a candidate is compared with; ``file`` writes and reads the file; ``identity`` recognises the
weights, tokenizer and text that it was measured with.
"""
