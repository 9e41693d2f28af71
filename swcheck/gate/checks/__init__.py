"""The checks of the gate: each takes a ``Pair`` (or one ``Subject``) and a limit, and returns a ``Verdict``.

``confounds`` are ruled out first, in every check. ``correspondence`` finds the reference's super weights in the
candidate. ``red_verdict`` adds the cause of a red verdict and what to do. A red verdict is returned here;
``gate.conclusion`` raises it.
"""
