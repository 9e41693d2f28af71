"""The causes of a red verdict, a module each.

Each has ``find(damaged)``, which returns a ``Finding`` where the cause is proven, else the rows that rule it out. The
order in which they are tried is ``STEPS`` in ``gate.diagnosis.explain``. ``rest_of_the_model`` comes last.
"""
