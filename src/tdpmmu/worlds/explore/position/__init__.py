"""Positions: where a thread stands, as a value.

A thread is a deterministic function of the results it receives, so what it will do is fixed by
the frames of its coroutine chain.  :func:`~tdpmmu.worlds.explore.position.frames.position_key`
turns those into a hashable key.  Equal keys must mean equal futures, so whatever the key does not
understand is refused rather than left out.  The :mod:`~tdpmmu.worlds.explore.position.table` of a
thread interns its keys.

The key speaks of what a thread owns.  Objects with ``position_key()`` are constants whatever their
attributes; module globals are constants too.  Whether two *immutable* values are the same object
(``is``) is not part of it, nor is the hidden history which lets two equal sets iterate differently
after further insertions.
"""
