"""The paper (arXiv 2411.07191), executable on any model: each of its claims is a study that measures and draws it.

``runner`` takes studies, ``claims`` makes an assertion of one, ``paper`` compares with published numbers. ``chapters``
has a module for each study, ``common`` what they share, ``zeroshot`` the accuracy.
"""
