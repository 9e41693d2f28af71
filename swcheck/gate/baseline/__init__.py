"""A reference's measurements in one small file, so that a gate need not load the reference.

``measure`` measures everything that a candidate is compared with. ``file`` writes and reads the file: ``document`` is its
outer form, ``packing`` that of a value, ``value_types`` holds what is read against what was measured. ``identity`` checks
that a file was measured with the same weights, tokenizer and text.
"""
