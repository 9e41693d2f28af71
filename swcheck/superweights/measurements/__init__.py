"""The numbers that are measured of a subject, a function each; ``subject.measurement`` says how to add one.

``inputs`` (text, windows, prompts), ``weights``, ``contributions`` (what super weights write), ``residual_stream``,
``prompt_readings``, ``scores`` (likelihood, predictions), ``ablation`` (scores without some weights).
"""
