"""Scenarios driven by hand, in a terminal."""
