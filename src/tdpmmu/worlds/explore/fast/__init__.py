"""The same search on arrays, in compiled code (numba; the extra ``fast``)."""
