"""Worlds: what a scheduling point does."""
