"""All guests that run, touch by touch, in compiled code (numba)."""
