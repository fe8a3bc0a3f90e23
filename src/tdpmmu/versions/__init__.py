"""Kernels: what each release does differently, and patches on them."""
