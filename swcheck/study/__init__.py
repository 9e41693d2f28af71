"""The paper (arXiv 2411.07191) as executable studies: each measures one claim on any model and draws the result.

``runner`` runs studies and writes their files. ``claims`` turns a study into an assertion. ``paper`` compares results
with published numbers. ``chapters`` has one module per study, ``common`` what all studies share, ``zeroshot`` the
zero-shot accuracy.
"""
