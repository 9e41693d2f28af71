"""The numbers that are measured of a subject, one function for each; ``subject.measurement`` says how to add one.

``inputs``: text, windows, prompts. ``weights``: weight values and sizes. ``located``: the super weights.
``contributions``: what they write. ``residual_stream``: super activations and the whole stream. ``prompt_readings``: an
activation on many prompts. ``scores``: likelihood and predictions. ``ablation``: scores with weights zeroed.
``model_sample``: what identifies a base model.
"""
