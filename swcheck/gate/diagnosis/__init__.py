"""Finds why a check is red, and what to do about it.

``explain`` tries the causes in order; ``causes`` has a module for each, ``evidence`` what they are proven with.
``remedy`` proposes a fix, with a line from ``snippets`` to paste, and ``fix_trial`` measures whether the fix helps.
"""
