"""The checks of the gate: each takes a ``Pair`` (or one ``Subject``) and a limit, and returns a ``Verdict``.

``confounds`` come first, in every check; ``correspondence`` finds the reference's super weights in the candidate;
``red_verdict`` adds the cause and what to do. Nothing here raises for a red verdict: ``gate.conclusion`` does.
"""
