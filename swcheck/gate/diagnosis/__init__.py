"""Why a check is red, and what to do: ``explain`` tries the causes in order, ``remedy`` proposes a fix and proves it.

``causes`` has a module for each cause; ``evidence`` is what they are proven with.
"""
