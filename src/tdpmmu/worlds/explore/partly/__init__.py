"""Searches of what cannot be exhausted: part of the executions, and a word on which part."""
