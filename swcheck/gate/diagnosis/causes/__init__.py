"""The causes of a red verdict, one in each module.

Each module has ``find(damaged)``, which returns a ``Finding`` if the cause is proven, else the rows that rule it out.
They are tried in the order of ``STEPS`` in ``gate.diagnosis.explain``. ``rest_of_the_model`` comes last.
"""
