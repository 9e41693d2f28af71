"""What differs between a red candidate and its reference and can be given back: fields of the configuration, tensors.

Each module has ``suspects(damaged)``. Whether one is the cause is proven by ``gate.diagnosis.causes.differences``.
"""
